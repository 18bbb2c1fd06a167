"""Which model of transformers does a task, and which of its parts are new and must be learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    "multi-label": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "embedding": "AutoModel",
}
"""The class that builds each task's model; a base of another family has none, and says so."""
PROBLEMS = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
"""What transformers calls the tasks that share its classification models."""
T5_FAMILY = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""Families whose encoder and decoder are known to read as T5's do."""
NEW_HEAD = (*PROBLEMS, "token-classification")
"""Tasks whose head no base brings along: it is drawn from the seed and trains with the adapter."""
PEFT_TASKS = {
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "FEATURE_EXTRACTION": "MODEL_MAPPING_NAMES",
}
"""peft's names of tasks, and where transformers lists the models that do them."""
DOES = "_peftkit_does"
"""The attribute of a model under which its task and labels lie."""
MADE_UP = "_peftkit_made_up"
"""The attribute of a model that lists modules whose weights its checkpoint lacks."""


def model_class(task: str) -> Any:
    """The auto class of a task."""
    return getattr(transformers, AUTO[task])


def settle_config(config: Any, task: str, labels: Sequence[str], pad_id: int | None) -> Any:
    """The base's configuration as its task needs it: as many outputs as labels, and their names."""
    if task in NEW_HEAD:
        names = [str(label) for label in labels] or ["value"]
        config.num_labels = len(names)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.problem_type = PROBLEMS.get(task)
    encodes = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if task in PROBLEMS and pad_id is not None and not encodes:
        config.pad_token_id = pad_id  # a decoder looks for the last token before padding
    return config


def refuse_two_stacks(config: Any, task: str, name: str) -> None:
    """Say what is not done with an encoder that has a decoder.

    Raises:
        InputError: it is to give vectors, or is of a family that reads or pads otherwise than T5.
    """
    if not config.is_encoder_decoder:
        return
    if task == "embedding":
        raise InputError(
            f"base.task: `{name}` has a decoder as well, and gives no vector of a text",
            hint="an encoder such as BERT does; `--set base.task=seq2seq` is for this base",
        )
    if task == "seq2seq" and config.model_type not in T5_FAMILY:
        raise InputError(
            f"base.task: seq2seq is for {', '.join(T5_FAMILY)}, and `{name}` is a "
            f"{config.model_type} base, which reads and pads otherwise",
            hint="take T5 or one of its kin, such as `google/flan-t5-base`",
        )


def refuse_both_ways(config: Any, task: str, name: str) -> None:
    """Say that a base which sees what comes after a word cannot be asked for it.

    transformers would train it all the same, and its loss would fall to nothing.

    Raises:
        InputError: an encoder is to be a causal language model.
    """
    encoders = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decodes = getattr(config, "is_decoder", False)
    if task == "causal-lm" and config.model_type in encoders and not decodes:
        raise InputError(
            f"base.task: `{name}` is an encoder ({config.model_type}): it sees what comes after a "
            "word, so causal-lm would ask for what it is shown",
            hint="`--set base.task=masked-lm`, or classification, embedding and others with labels",
        )


def note_task(model: Any, task: str, labels: Sequence[str]) -> None:
    """Write on a model what it does, for whoever saves an adapter of it."""
    setattr(model, DOES, {"task": task, "labels": list(labels)})


def task_of(model: Any) -> dict[str, Any]:
    """The task and the labels of a model, as its base was loaded for them."""
    found: dict[str, Any] = getattr(model, DOES, {"task": "causal-lm", "labels": []})
    return found


def peft_task_of(model: Any) -> str | None:
    """What peft calls the task that a model does; None for one it has no name for."""
    name = type(model).__name__
    for task, mapping in PEFT_TASKS.items():
        models = getattr(modeling_auto, mapping).values()
        if any(name == known or (isinstance(known, tuple) and name in known) for known in models):
            return task
    return None


def new_parts(model: Any) -> list[str]:
    """Names of the modules that must train with any adapter, because no base brings them along."""
    made_up: list[str] = list(getattr(model, MADE_UP, ()))
    if peft_task_of(model) not in ("SEQ_CLS", "TOKEN_CLS"):
        return made_up
    backbone = model.base_model
    heads = [
        name
        for name, child in model.named_children()
        if child is not backbone and any(True for _ in child.parameters())
    ]
    if peft_task_of(model) == "SEQ_CLS" and any(True for _ in _pooler(backbone).parameters()):
        heads.append(f"{model.base_model_prefix}.pooler")
    return [*heads, *(name for name in made_up if not _is_inside(name, heads))]


def _pooler(backbone: Any) -> Any:
    """What an encoder makes one vector of a text with, as its head expects it.

    It was pretrained for another question, or for none: left frozen, it would be what a new head
    has to see through. So it trains with the head, in every method alike.
    """
    return getattr(backbone, "pooler", None) or nn.Identity()


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def note_missing(model: Any, missing: Collection[str], task: str, name: str) -> None:
    """Remember which modules a checkpoint has no weights for, or refuse to make them up.

    A bias beside a weight that is there, as above tied embeddings, stays at 0.

    Raises:
        InputError: the base lacks weights of its own, not those of a head that is new anyway.
    """
    owners = sorted({key.rpartition(".")[0] for key in missing})
    inside = [owner for owner in owners if _within_blocks(owner)]
    if owners and (inside or task in ("causal-lm", "seq2seq")):
        lost = sorted(missing)
        raise InputError(
            f"`{name}` lacks {len(lost)} tensors of its own model, e.g. `{lost[0]}`",
            hint="with made-up values in their place every result would be wrong",
        )
    if task == "embedding":  # what it lacks, such as a pooler, is not looked at
        return
    made_up = {key.removesuffix(".weight") for key in missing if key.endswith(".weight")}
    own = {module: child for module, child in model.named_modules() if module in made_up}
    setattr(model, MADE_UP, [module for module in own if _holds_parameters(own[module])])


def _within_blocks(module: str) -> bool:
    return any(part.isdigit() for part in module.split(".")) or "embeddings" in module


def _holds_parameters(module: Any) -> bool:
    """Whether a module has parameters and nothing below it has."""
    return not any(True for child in module.children() for _ in child.parameters())
