"""The JSON schema accepts what the loader accepts, and the committed one is current."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe import catalog
from peftkit.recipe.export import json_schema
from peftkit.recipe.kinds import MERGE, RECIPE
from peftkit.recipe.load import load_merge, load_recipe
from peftkit.recipe.reference import keys
from peftkit.recipe.strict_yaml import parse

RECIPES = Path(__file__).parents[3] / "recipes"
KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": tuple}
KINDS |= {"object": dict, "null": type(None)}

GOOD = [
    "base: {model: m}\ndata: {train: a.txt}",
    "base: {model: m}\ndata: {train: [a.txt, {source: b.txt, format: chat}]}",
    "base: {model: m}\ndata: {train: {source: a.txt, columns: {prompt: q}}, validation: b.txt}",
    "base: {model: m}\ndata: {train: a.txt, validation: {fraction: 0.1}, test: [b.txt]}",
    "base: {model: m}\ndata: {train: a.txt, validation: {source: b.txt}}",
    "base: {model: m}\ndata: {train: a.txt, validation: [b.txt, {source: c.txt}]}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {targets: q_proj, alpha: 3, layers: [1]}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: full}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: ia3, targets: k_proj}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: ia3, feedforward: auto}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: top, blocks: 3}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {variant: dora, rank: 3}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: qlora, rank: 3}",
    "base: {model: m, quantize: fp4, double_quant: false}\ndata: {train: a.txt}",
    "base: {model: m}\ndata: {train: a.txt}\ntrain: {steps: auto, learning_rate: 1}",
    "name: a\nbase: {model: m}\ndata: {train: a.txt}\nevaluate: {remember: b.txt}",
    "extends: parent.yaml\nbase: {revision: v1}",
]
BAD = [
    "base: {model: m}",
    "base: {}\ndata: {train: a.txt}",
    "base: {model: m}\ndata: {train: 3}",
    "base: {model: m}\ndata: {train: {format: text}}",
    "base: {model: m, modle: m}\ndata: {train: a.txt}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: loar}",
    "base: {model: m, quantize: nf5}\ndata: {train: a.txt}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: full, rank: 3}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: oft, block_size: 1}",
    "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: top, blocks: 0}",
    "base: {model: m}\ndata: {train: a.txt}\ntrain: {steps: 0}",
    "base: {model: m}\ndata: {train: a.txt}\ntrain: {learning_rate: 0}",
    "base: {model: m}\ndata: {train: a.txt}\ntrain: {batch: 3}",
    "base: {model: m}\ndata: {train: a.txt, packing: yes}",
    "base: {model: m}\ndata: {train: a.txt, augment: {drop: 1.1}}",
    "name: a/b\nbase: {model: m}\ndata: {train: a.txt}",
    "extends: 3",
]
GOOD_MERGES = [
    "adapters: {a: a}\nexpression: a",
    "adapters: {a: a}\nexpression: a\nmethod: ties@paper",
    "adapters: {a: a}\nexpression: a\nmethod: {name: ties, keep: 0.3, elect: {by: count}}",
    "adapters: {a: a}\nexpression: a\nmethod: {normalize: true}",
    "adapters: {a: a}\nexpression: a\nscale: [{match: '*.mlp.*', times: {a: -1}}]",
    "adapters: {a: a}\nexpression: a\nheads: {keep: a}\nwithout: ['*norm*']",
    "adapters: {a: a}\nexpression: a\nheads: average\noutput: {as: weights, rank: all}",
    "adapters: {a: a}\nexpression: a\noutput: {energy: 0.9, dtype: bfloat16}",
    "adapters: {a: a}\nexpression: a\nevaluate: {tasks: {a: a.txt}}\n\
search: {over: {a: [0, 1.5]}, objective: a, subject_to: {a: 0.95}}",
    "extends: parent.yaml\nbase: m",
]
BAD_MERGES = [
    "adapters: {a: a}",
    "adapters: {}\nexpression: a",
    "adapters: {a: 3}\nexpression: a",
    "adapters: {a: a}\nexpression: a\nmethod: tise",
    "adapters: {a: a}\nexpression: a\nmethod: {name: slerp, keep: 0.3}",
    "adapters: {a: a}\nexpression: a\nmethod: {name: ties, keep: 1.3}",
    "adapters: {a: a}\nexpression: a\nscale: [{match: '*.mlp.*'}]",
    "adapters: {a: a}\nexpression: a\nheads: keep",
    "adapters: {a: a}\nexpression: a\noutput: {form: weights}",
    "adapters: {a: a}\nexpression: a\nsearch: {over: {a: [0]}, objective: a}",
    "adapters: {a: a}\nexpression: a\nkeep: 0.2",
]


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """As much of JSON Schema as the recipe's schema uses; an unknown word fails the test."""
    rules = {
        "$ref": lambda ref: accepts(root["$defs"][ref.rpartition("/")[2]], value, root),
        "type": lambda kind: (
            isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
        ),
        "const": lambda only: value == only,
        "enum": lambda choices: value in choices,
        "anyOf": lambda options: any(accepts(option, value, root) for option in options),
        "oneOf": lambda options: sum(accepts(option, value, root) for option in options) == 1,
        "items": lambda items: (
            all(accepts(items, child, root) for child in value)
            if isinstance(value, tuple)
            else True
        ),
        "required": lambda names: not isinstance(value, dict) or set(names) <= value.keys(),
        "properties": lambda known: (
            not isinstance(value, dict)
            or all(accepts(known[key], value[key], root) for key in known.keys() & value.keys())
        ),
        "additionalProperties": lambda other: (
            not isinstance(value, dict)
            or all(
                other is not False and accepts(other, value[key], root)
                for key in value.keys() - schema.get("properties", {}).keys()
            )
        ),
        "if": lambda test: accepts(test, value, root) or accepts(schema["else"], value, root),
        "minimum": lambda limit: not isinstance(value, int | float) or value >= limit,
        "maximum": lambda limit: not isinstance(value, int | float) or value <= limit,
        "exclusiveMinimum": lambda limit: not isinstance(value, int | float) or value > limit,
        "exclusiveMaximum": lambda limit: not isinstance(value, int | float) or value < limit,
        "minLength": lambda limit: not isinstance(value, str) or len(value) >= limit,
        "maxItems": lambda limit: not isinstance(value, tuple) or len(value) <= limit,
        "minProperties": lambda limit: not isinstance(value, dict) or len(value) >= limit,
        "minItems": lambda limit: not isinstance(value, tuple) or len(value) >= limit,
        "pattern": lambda pattern: re.search(pattern, value) is not None,
    }
    silent = {"$schema", "$defs", "title", "description", "default", "examples", "else"}
    assert schema.keys() <= rules.keys() | silent
    return all(rules[word](schema[word]) for word in schema if word in rules)


def test_the_committed_schemas_are_current() -> None:
    for kind, name in ((RECIPE, "recipe"), (MERGE, "merge")):
        committed = json.loads((RECIPES / f"{name}.schema.json").read_text())
        assert committed == json_schema(kind), f"`{kind.explained} > recipes/{name}.schema.json`"


@pytest.mark.parametrize("text", GOOD_MERGES)
def test_the_schema_of_merges_accepts_what_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("adapters: {a: a}\nexpression: a")
    (tmp_path / "a.yaml").write_text(text)
    load_merge(tmp_path / "a.yaml")
    assert accepts(json_schema(MERGE), parse(text.encode()).value, json_schema(MERGE))


@pytest.mark.parametrize("text", BAD_MERGES)
def test_the_schema_of_merges_refuses_what_does_not_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_merge(tmp_path / "a.yaml")
    assert not accepts(json_schema(MERGE), parse(text.encode()).value, json_schema(MERGE))


@pytest.mark.parametrize("text", GOOD)
def test_the_schema_accepts_what_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("base: {model: m}\ndata: {train: a.txt}")
    (tmp_path / "a.yaml").write_text(text)
    load_recipe(tmp_path / "a.yaml")
    assert accepts(json_schema(), parse(text.encode()).value, json_schema())


@pytest.mark.parametrize("text", BAD)
def test_the_schema_refuses_what_does_not_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "a.yaml")
    assert not accepts(json_schema(), parse(text.encode()).value, json_schema())


def test_the_schemas_accept_every_shipped_recipe() -> None:
    seen = 0
    for one in catalog.shipped():
        schema = json_schema(MERGE if MERGE.command in one.run else RECIPE)
        assert accepts(schema, parse(one.path.read_bytes()).value, schema), one.name
        seen += 1
    assert seen >= 10


def test_every_key_is_explained() -> None:
    every = keys()
    assert len(every) >= 40
    for key in every:
        assert key.expected
        assert key.meaning.endswith("."), key.name
    assert len({(key.name, key.belongs) for key in every}) == len(every)


def test_keys_are_explained_below_a_section_only() -> None:
    assert {key.name for key in keys("train.batch")} == {
        "train.batch.rows",
        "train.batch.micro_rows",
    }
    assert {key.name for key in keys("data.test")} == {"data.test"}  # a source is explained once
    (method,) = keys("adapter.method")
    assert (method.expected, method.default) == (
        (
            "`lora`, `ia3`, `vera`, `oft`, `bottleneck`, `prefix`, `prompt`, `p-tuning`, "
            "`layernorm`, `bitfit`, `head`, `top` or `full`"
        ),
        "lora",
    )
    assert [key.default for key in keys("base.model")] == [""]
    with pytest.raises(RecipeError, match=r"no key `train\.stepz`; did you mean `train\.steps`\?"):
        keys("train.stepz")
