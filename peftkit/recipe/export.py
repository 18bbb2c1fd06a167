"""The recipe as a JSON schema, for editors that complete and check YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from peftkit.recipe.kinds import RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.recipe.kinds import Kind

_EXTENDS = {
    "type": "string",
    "description": "A recipe to start from, relative to this one; keys given here win.",
}


def json_schema(kind: Kind = RECIPE) -> dict[str, Any]:
    """What people may write in one file: shorthands included, `name` optional, `extends` allowed.

    A file that extends another may leave out what the other says, so required keys of the
    sections are asked for only of a file that stands alone.
    """
    schema = kind.schema.model_json_schema(schema_generator=_WithoutFieldTitles)
    needed = [key for key in schema.pop("required") if key != "name"]
    inner = dict(_required_inside(schema, needed))
    if kind is RECIPE:
        schema["$defs"]["StageSection"]["required"] = ["name"]  # what it leaves out is said above
    alone = {"required": needed} | ({"properties": inner} if inner else {})
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": f"peftkit {kind.called}",
        **{key: value for key, value in schema.items() if key not in ("$defs", "title")},
        "properties": {"extends": _EXTENDS, **schema["properties"]},
        "if": {"anyOf": [{"required": ["extends"]}, {"required": ["stages"]}]},
        "else": alone,
        "$defs": schema["$defs"],
    }


def _required_inside(schema: dict[str, Any], needed: list[str]) -> Iterator[tuple[str, Any]]:
    """Take what the needed sections need out of their definitions, by section."""
    for key in needed:
        if reference := schema["properties"][key].get("$ref"):
            section = schema["$defs"][str(reference).rpartition("/")[2]]
            yield key, {"required": section.pop("required")}


class _WithoutFieldTitles(GenerateJsonSchema):
    """A key is its own title: `Learning Rate` beside `learning_rate` tells nobody anything."""

    @override
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
