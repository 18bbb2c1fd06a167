"""The lines of Python on a model card that load the adapter, without peftkit where possible."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from peftkit.report.text import fenced
from peftkit.report.tolerant import text

if TYPE_CHECKING:
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
_WRITES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def how_to_load(base: BaseName, config: Loose, repo: str | None, *, tokenizer: bool) -> str:
    """A code block that runs as it is, and what to know before it does.

    Args:
        base: the model underneath.
        config: adapter_config.json.
        repo: hub id of the adapter; without one the lines load the folder they are found in.
        tokenizer: whether the adapter brings its own.
    """
    kind = text(config.get("peft_type")) or "LORA"
    model = _CLASSES.get(text(config.get("task_type")) or "", "AutoModelForCausalLM")
    source, revision = _source(base)
    here = json.dumps(repo or ".")
    own = here if tokenizer else f"{source}{revision}"
    lines = [
        *_imports(base, kind, model, repo),
        "",
        f"base = {model}.from_pretrained({source}{revision})",
        f"tokenizer = AutoTokenizer.from_pretrained({own})",
        *_attach(kind, here, repo),
    ]
    if model in _WRITES:
        lines += [
            "",
            'prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids',
            "answer = model.generate(input_ids=prompt, max_new_tokens=40)",
            "print(tokenizer.decode(answer[0], skip_special_tokens=True))",
        ]
    return "\n\n".join([_before(base, kind, repo), fenced("\n".join(lines), "python")])


def _source(base: BaseName) -> tuple[str, str]:
    """What loads the base, as Python, and the rest of the arguments."""
    if base.kind == "builtin":
        return f"BUILTIN[{json.dumps(base.name)}]", ""
    if base.kind == "hub":
        at = f", revision={json.dumps(base.commit)}" if base.commit else ""
        return json.dumps(base.name), at
    return json.dumps(f"path/to/{base.name if base.kind == 'folder' else 'the-base'}"), ""


def _imports(base: BaseName, kind: str, model: str, repo: str | None) -> list[str]:
    changed = kind in CHANGED_ONLY
    wanted = [
        ("from huggingface_hub import hf_hub_download", changed and repo is not None),
        ("from peft import PeftModel", not changed),
        ("from safetensors.torch import load_file", changed),
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


def _before(base: BaseName, kind: str, repo: str | None) -> str:
    """What to do before the lines run."""
    with_peftkit = kind == "BOTTLENECK" or base.kind == "builtin"
    packages = "peftkit" if with_peftkit else "transformers safetensors"
    if kind not in CHANGED_ONLY and not with_peftkit:
        packages = "peft transformers"
    needed = [f"After `pip install {packages}`"]
    if repo is None:
        needed.append("in the folder of this file")
    if base.kind in ("folder", "unknown"):
        needed.append("with the path of the base put in")
    said = f"{', '.join(needed)}:"
    if kind == "BOTTLENECK":
        return f"`peft` alone stops at this kind of adapter with `KeyError: 'BOTTLENECK'`. {said}"
    return said
