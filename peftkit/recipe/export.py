"""The recipe as a JSON schema, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from peftkit.recipe.schema import Recipe

_EXTENDS = {
    "type": "string",
    "description": "A recipe to start from, relative to this one; keys given here win.",
}


def json_schema() -> dict[str, Any]:
    """What people may write in one file: shorthands included, `name` optional, `extends` allowed.

    A file that extends another may leave out what the other says, so required keys of the
    sections are asked for only of a file that stands alone.
    """
    schema = Recipe.model_json_schema(mode="validation", schema_generator=_WithoutFieldTitles)
    needed = [key for key in schema.pop("required") if key != "name"]
    inner = {key: schema["$defs"][_definition(schema, key)].pop("required") for key in needed}
    schema["$defs"]["StageSection"]["required"] = ["name"]  # what it leaves out is said above
    alone = {
        "required": needed,
        "properties": {key: {"required": keys} for key, keys in inner.items()},
    }
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "peftkit recipe",
        **{key: value for key, value in schema.items() if key not in ("$defs", "title")},
        "properties": {"extends": _EXTENDS, **schema["properties"]},
        "if": {"anyOf": [{"required": ["extends"]}, {"required": ["stages"]}]},
        "else": alone,
        "$defs": schema["$defs"],
    }


class _WithoutFieldTitles(GenerateJsonSchema):
    """A key is its own title: `Learning Rate` beside `learning_rate` tells nobody anything."""

    @override
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _definition(schema: dict[str, Any], key: str) -> str:
    return str(schema["properties"][key]["$ref"]).rpartition("/")[2]
