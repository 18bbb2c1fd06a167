"""The lines of Python on a model card that load the adapter, without peftkit where possible."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from peftkit.report.text import fenced
from peftkit.report.tolerant import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.report.origin import BaseName
    from peftkit.report.tolerant import Loose

CHANGED_ONLY = ("FULL", "HEAD", "BITFIT", "LAYERNORM", "TOP")
"""Kinds that are no adapter to peft: a file of the base's own parameters, as they are now."""
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_BY_TASK = {"masked-lm": "AutoModelForMaskedLM", "embedding": "AutoModel"}
_GROW = (
    "rows = base.get_input_embeddings().num_embeddings",
    "base.resize_token_embeddings(max(rows, len(tokenizer)))  # the adapter brings new tokens",
)
_FILL = (
    "if tokenizer.pad_token is None:",
    "    tokenizer.pad_token = tokenizer.eos_token",
    "base.config.pad_token_id = tokenizer.pad_token_id  # texts of a batch are filled up with it",
)
NAMED = 100
"""Labels that are named on a card; more of them are counted."""
_WRITES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def how_to_load(
    base: BaseName,
    config: Loose,
    repo: str | None,
    *,
    tokenizer: bool,
    does: Loose,
    below: Sequence[tuple[str, str]] = (),
) -> str:
    """A code block that runs as it is, and what to know before it does.

    Args:
        base: the model underneath.
        config: adapter_config.json.
        repo: hub id of the adapter; without one the lines load the folder they are found in.
        tokenizer: whether the adapter brings its own.
        does: task.json, which says how many outputs a head has.
        below: name and kind of each adapter that it was trained above, the lowest first.
    """
    kind = text(config.get("peft_type")) or "LORA"
    model = _CLASSES.get(text(config.get("task_type")) or "", "AutoModelForCausalLM")
    model = _BY_TASK.get(text(does.get("task")) or "", model)
    source, revision = _source(base)
    here = json.dumps(repo or ".")
    own = here if tokenizer else f"{source}{revision}"
    lines = [
        *_imports(base, (kind, *(each for _, each in below)), model, repo),
        "",
        f"base = {model}.from_pretrained({source}{revision}{_outputs(does)})",
        f"tokenizer = AutoTokenizer.from_pretrained({own})",
        *(_GROW if tokenizer and config.get("trainable_token_indices") else ()),
        *(_FILL if config.get("task_type") == "SEQ_CLS" else ()),
        *_own_head(does),
        *_attach_above(kind, here, repo, below),
    ]
    if _own_head(does):
        lines.insert(0, "from peftkit.adapters.head import put_on_head")
    if model in _WRITES:
        lines += [
            "",
            'prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids',
            "answer = model.generate(input_ids=prompt, max_new_tokens=40)",
            "print(tokenizer.decode(answer[0], skip_special_tokens=True))",
        ]
    before = _before(base, kind, repo, above=bool(below), own_head=bool(_own_head(does)))
    return "\n\n".join([before, fenced("\n".join(lines), "python")])


def _own_head(does: Loose) -> list[str]:
    """Lines that put the head of two layers there, where the adapter was trained with one."""
    head = does.get("head")
    if not isinstance(head, dict):
        return []
    return [f"put_on_head(base, hidden={head.get('hidden')}, dropout={head.get('dropout')})"]


def _outputs(does: Loose) -> str:
    """How many outputs the head must have, as Python; nothing where the base knows by itself."""
    labels = does.get("labels")
    if text(does.get("task")) == "regression":
        return ", num_labels=1"
    if not isinstance(labels, list) or not labels:
        return ""
    if len(labels) > NAMED:
        return f", num_labels={len(labels)}"
    return f", id2label=dict(enumerate({json.dumps(labels, ensure_ascii=False)}))"


def _source(base: BaseName) -> tuple[str, str]:
    """What loads the base, as Python, and the rest of the arguments."""
    if base.kind == "builtin":
        return f"BUILTIN[{json.dumps(base.name)}]", ""
    if base.kind == "hub":
        at = f", revision={json.dumps(base.commit)}" if base.commit else ""
        return json.dumps(base.name), at
    return json.dumps(f"path/to/{base.name if base.kind == 'folder' else 'the-base'}"), ""


def _imports(base: BaseName, kinds: Sequence[str], model: str, repo: str | None) -> list[str]:
    kind, changed = kinds[0], [each in CHANGED_ONLY for each in kinds]
    wanted = [
        ("from huggingface_hub import hf_hub_download", changed[0] and repo is not None),
        ("from peft import PeftModel", not all(changed)),
        ("from safetensors.torch import load_file", any(changed)),
        (f"from transformers import {model}, AutoTokenizer", True),
        ("", kind == "BOTTLENECK" or base.kind == "builtin"),
        ("import peftkit.adapters  # teaches peft this kind of adapter", kind == "BOTTLENECK"),
        ("from peftkit.base.locate import BUILTIN", base.kind == "builtin"),
    ]
    return [line for line, needed in wanted if needed]


def _attach(kind: str, here: str, repo: str | None) -> list[str]:
    if kind not in CHANGED_ONLY:
        return [f"model = PeftModel.from_pretrained(base, {here})"]
    file = f'hf_hub_download({here}, "delta.safetensors")' if repo else '"delta.safetensors"'
    return [
        f"base.load_state_dict(load_file({file}), strict=False)  # only what training changed",
        "model = base",
    ]


def _attach_above(
    kind: str, here: str, repo: str | None, below: Sequence[tuple[str, str]]
) -> list[str]:
    """The lines that load what stands under the adapter, and then the adapter."""
    lines: list[str] = []
    names: list[str] = []
    for name, under in below:
        place = json.dumps(f"path/to/{name}")
        if under in CHANGED_ONLY:
            file = json.dumps(f"path/to/{name}/delta.safetensors")
            lines.append(f"base.load_state_dict(load_file({file}), strict=False)")
            continue
        names.append(f"under{len(names)}")
        first = f"model = PeftModel.from_pretrained(base, {place}, adapter_name="
        more = f"model.load_adapter({place}, adapter_name="
        lines.append(f"{first if len(names) == 1 else more}{json.dumps(names[-1])})")
    if not names:
        return [*lines, *_attach(kind, here, repo)]
    together = json.dumps([*names, "default"])
    return [
        *lines,
        f'model.load_adapter({here}, adapter_name="default")',
        f"model.base_model.set_adapter({together})",
    ]


def _before(
    base: BaseName, kind: str, repo: str | None, *, above: bool = False, own_head: bool = False
) -> str:
    """What to do before the lines run."""
    with_peftkit = kind == "BOTTLENECK" or base.kind == "builtin" or own_head
    packages = "peftkit" if with_peftkit else "transformers safetensors"
    if kind not in CHANGED_ONLY and not with_peftkit:
        packages = "peft transformers"
    needed = [f"After `pip install {packages}`"]
    if repo is None:
        needed.append("in the folder of this file")
    if base.kind in ("folder", "unknown"):
        needed.append("with the path of the base put in")
    if above:
        needed.append("with that of each adapter under it put in")
    said = f"{', '.join(needed)}:"
    if kind == "BOTTLENECK":
        return f"`peft` alone stops at this kind of adapter with `KeyError: 'BOTTLENECK'`. {said}"
    return said
