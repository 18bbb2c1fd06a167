"""The laws of adapters over families and tasks, and what each task's loss is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import DECODERS, ENCODERS, LABELS, TASKS_OF, build, task_called, write_rows
from peft import PeftModel

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.fold import fold
from peftkit.adapters.in_place import forget_before
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.adapters.task_file import read_task
from peftkit.base.load import load_base, shape_of
from peftkit.base.locate import Origin
from peftkit.base.targets import explain_experts
from peftkit.base.tasks import NEW_HEAD, new_parts, peft_task_of
from peftkit.data.batch import Layout, collate_task, make_update
from peftkit.errors import InputError, RecipeError
from peftkit.evaluate.predictions import predict_all
from peftkit.fast.loss import each_loss
from peftkit.fast.recompute import recompute, refuse_recompute
from peftkit.fast.task_losses import average, outputs_of
from peftkit.recipe.sections.adapter import (
    AdapterSection,
    BitfitSection,
    FullSection,
    HeadSection,
    Ia3Section,
    LayernormSection,
    LoraSection,
    PrefixSection,
    PromptSection,
    PTuningSection,
    TopSection,
)
from peftkit.recipe.sections.base import BaseSection
from peftkit.train.loop import accumulate

CASES = [(family, task) for family, tasks in TASKS_OF.items() for task in tasks]
LORA = LoraSection(rank=4)
METHODS: dict[str, AdapterSection] = {
    "lora": LORA,
    "ia3": Ia3Section(method="ia3"),
    "layernorm": LayernormSection(method="layernorm"),
    "bitfit": BitfitSection(method="bitfit"),
    "head": HeadSection(method="head"),
    "head with a layer before": HeadSection(method="head", hidden=8, dropout=0.1),
    "top": TopSection(method="top", blocks=1),
    "full": FullSection(method="full"),
}
BEFORE_THE_TEXT: dict[str, AdapterSection] = {
    "prefix": PrefixSection(method="prefix", tokens=4),
    "prompt": PromptSection(method="prompt", tokens=4),
    "p-tuning": PTuningSection(method="p-tuning", tokens=4),
}
PLACED = [
    *((method, "bert", task) for method in BEFORE_THE_TEXT for task in TASKS_OF["bert"][1:]),
    *((method, "roberta", "classification") for method in BEFORE_THE_TEXT),
    *((method, "t5", "seq2seq") for method in BEFORE_THE_TEXT),
    *((method, "llama", "embedding") for method in BEFORE_THE_TEXT),
    *(("prefix", family, "classification") for family in ("llama", "gpt2", "qwen3")),
]
MLM_NORM = "cls.predictions.transform.LayerNorm"
CPU = torch.device("cpu")
CLASSIFIERS = [(family, name) for family in (*ENCODERS, "llama", "gpt2") for name in METHODS]
POSSIBLE = [
    case for case in CLASSIFIERS if case not in (("llama", "bitfit"), ("modernbert", "bitfit"))
]


def outputs(model: Any, task: str) -> torch.Tensor:
    """What the model says of four rows, evaluated."""
    with torch.inference_mode():
        rows = write_rows(task)
        if task == "causal-lm":
            return each_loss(model.eval(), collate_task(rows, task_called(task), 0)).clone()
        return outputs_of(model.eval(), collate_task(rows, task_called(task), 0)).clone()


def gradients(model: Any, task: str, micro_rows: int) -> dict[str, torch.Tensor]:
    """Of one update, in micro-batches of so many rows."""
    model.zero_grad()
    layout = Layout(False, micro_rows, 0, task=task_called(task))
    draws = [(7, number) for number in range(4)]
    update = make_update(write_rows(task), layout, draws=draws)
    accumulate(model.train(), update, CPU, seed=0)
    return {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}


def learn(model: Any, task: str, steps: int = 3, rate: float = 0.05) -> Any:
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=rate)
    batch = collate_task(write_rows(task), task_called(task), 0)
    for _ in range(steps):
        optimizer.zero_grad()
        each_loss(model.train(), batch).sum().backward()
        optimizer.step()
    return model.eval()


def save(model: Any, folder: Path, method: str = "lora") -> Path:
    save_adapter(model, folder, Origin("org/tiny", folder.parent, "0123abc"), method=method)
    return folder


@pytest.mark.parametrize(("family", "task"), CASES)
def test_an_adapter_learns_comes_back_and_leaves_the_base_alone(
    family: str, task: str, tmp_path: Path
) -> None:
    base = build(family, task)
    before = outputs(base, task)
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    model = attach(base, LORA, seed=0)
    assert torch.allclose(outputs(model, task), before, atol=1e-6)
    learn(model, task)
    after = outputs(model, task)
    assert not torch.allclose(after, before, atol=1e-4)
    with base_only(model):
        assert torch.allclose(outputs(model, task), before, atol=1e-6)
    plain = build(family, task)
    assert all(torch.equal(frozen[name], p) for name, p in plain.named_parameters())
    folder = save(model, tmp_path / "adapter")
    assert torch.equal(outputs(load_adapter(plain, folder), task), after)
    theirs = PeftModel.from_pretrained(build(family, task), str(folder)).eval()
    assert torch.equal(outputs(theirs, task), after)
    assert read_task(folder)["task"] == task


@pytest.mark.parametrize(
    ("family", "task"), [case for case in CASES if case[1] not in ("embedding", "causal-lm")]
)
def test_micro_batches_and_padding_change_no_gradient(family: str, task: str) -> None:
    model = attach(build(family, task), LORA, seed=0)
    whole, alone = gradients(model, task, 4), gradients(model, task, 1)
    assert whole.keys() == alone.keys()
    assert any(float(g.abs().max()) > 1e-6 for g in whole.values())
    for name, gradient in whole.items():
        assert torch.allclose(gradient, alone[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(("family", "name"), POSSIBLE)
def test_a_head_trains_beside_every_method_and_is_saved_with_it(
    family: str, name: str, tmp_path: Path
) -> None:
    task, section = "classification", METHODS[name]
    model = attach(build(family, task), section, seed=0)
    before = outputs(model, task)
    heads = new_parts(model.get_base_model() if isinstance(model, PeftModel) else model)
    assert heads
    assert any(any(head in n for head in heads) for n in trainable(model))
    learn(model, task)
    after = outputs(model, task)
    assert not torch.allclose(after, before, atol=1e-4)
    with base_only(model):
        assert torch.equal(outputs(model, task), before)
    folder = save(model, tmp_path / "adapter", section.method)
    loaded = load_adapter(build(family, task), folder)
    assert torch.equal(outputs(loaded, task), after)
    assert read_task(folder)["labels"] == ["cold", "hot", "mild"]


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_only_the_head_trains_on_frozen_features(family: str) -> None:
    model = attach(build(family, "classification"), METHODS["head"], seed=0)
    pooler = getattr(model.base_model, "pooler", None)
    own = set() if pooler is None else {id(parameter) for parameter in pooler.parameters()}
    below = {id(parameter) for parameter in model.base_model.parameters()} - own
    assert not any(id(parameter) in below for parameter in trainable(model).values())
    assert own <= {id(parameter) for parameter in trainable(model).values()}


@pytest.mark.parametrize("task", ["classification", "embedding", "regression", "multi-label"])
def test_predictions_do_not_depend_on_the_rows_around(task: str) -> None:
    model, named = build("bert", task), task_called(task)
    rows = write_rows(task, 6)
    together = predict_all(model, rows, named, 0)
    assert len(together.scores) == 6
    if task == "embedding":
        again = predict_all(model, rows[::-1], named, 0)
        turned = [scores[::-1] for scores in again.scores[::-1]]
        assert all(abs(a - b).max() < 1e-5 for a, b in zip(together.scores, turned, strict=True))
        return
    for number, row in enumerate(rows):
        alone = predict_all(model, [row], named, 0)
        assert abs(alone.scores[0] - together.scores[number]).max() < 1e-5
        assert abs(alone.losses[0] - together.losses[number]) < 1e-5


def test_each_family_is_known_to_peft_by_its_task() -> None:
    found = {task: peft_task_of(build("bert", task)) for task in TASKS_OF["bert"]}
    assert found == {
        "masked-lm": None,
        "classification": "SEQ_CLS",
        "multi-label": "SEQ_CLS",
        "token-classification": "TOKEN_CLS",
        "regression": "SEQ_CLS",
        "embedding": "FEATURE_EXTRACTION",
    }
    assert {peft_task_of(build(family)) for family in DECODERS} == {"CAUSAL_LM"}
    assert peft_task_of(build("t5", "seq2seq")) == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_mixture_says_which_of_its_weights_no_adapter_reaches(family: str) -> None:
    told = explain_experts(build(family))
    assert told is not None
    assert "`down_proj` (4, 32, " in told
    adapted = attach(build(family), LORA, seed=0)
    assert not any(".experts." in name for name in trainable(adapted))
    whole = trainable(attach(build(family), METHODS["full"], seed=0))
    assert any(".experts." in name for name in whole)
    assert explain_experts(build("llama")) is None


def test_a_base_that_cannot_do_a_task_says_so_before_its_weights_are_read(tmp_path: Path) -> None:
    build("t5", "seq2seq").config.save_pretrained(tmp_path)
    section = BaseSection(model=str(tmp_path), weights="random", task="masked-lm")
    with pytest.raises(InputError, match=r"no masked-lm model for .*, a t5 base") as refusal:
        shape_of(section, Origin("tiny", tmp_path, None))
    assert refusal.value.hint


@pytest.mark.parametrize(("method", "family", "task"), PLACED)
def test_what_stands_before_a_text_learns_and_can_be_passed_by(
    method: str, family: str, task: str, tmp_path: Path
) -> None:
    before = outputs(build(family, task), task)
    model = learn(attach(build(family, task), BEFORE_THE_TEXT[method], seed=0), task)
    after = outputs(model, task)
    assert not torch.allclose(after, before, atol=1e-4)
    with base_only(model):
        assert torch.equal(outputs(model, task), before)
    assert torch.equal(outputs(model, task), after)
    folder = save(model, tmp_path / "adapter", method)
    assert torch.allclose(
        outputs(load_adapter(build(family, task), folder), task), after, atol=1e-5
    )
    theirs = PeftModel.from_pretrained(build(family, task), str(folder)).eval()
    assert torch.allclose(outputs(theirs, task), after, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "family", "task", "why"),
    [
        ("prefix", "modernbert", "classification", "take no keys and values from before"),
        ("prefix", "deberta-v2", "classification", "take no keys and values from before"),
        ("prompt", "llama", "classification", "does not find where the text ends"),
        ("p-tuning", "gpt2", "classification", "does not find where the text ends"),
        ("prompt", "bert", "masked-lm", "nothing before a text with hidden words"),
        ("prefix", "t5", "classification", "an encoder with a decoder sorts no text"),
    ],
)
def test_where_nothing_can_stand_before_a_text_is_told(
    method: str, family: str, task: str, why: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        attach(build(family, task), BEFORE_THE_TEXT[method], seed=0)
    assert why in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_an_encoder_is_not_asked_for_what_it_is_shown(family: str, tmp_path: Path) -> None:
    build(family, "masked-lm").config.save_pretrained(tmp_path)
    section = BaseSection(model=str(tmp_path), weights="random")
    with pytest.raises(InputError, match=r"is an encoder .*: it sees what comes after"):
        shape_of(section, Origin("tiny", tmp_path, None))


@pytest.mark.parametrize("name", ["lora", "ia3", "layernorm", "bitfit", "top", "full"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_blocks_that_run_again_change_no_gradient(family: str, name: str) -> None:
    task = "classification"
    model = attach(build(family, task), METHODS[name], seed=0)
    assert refuse_recompute(model) is None
    found = []
    for count in (0, 2):
        recompute(model, count)
        found.append(gradients(model, task, 2))
    for parameter, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][parameter], rtol=1e-4, atol=1e-6), parameter


@pytest.mark.parametrize("task", ["classification", "embedding", "token-classification"])
def test_a_real_encoder_loads_for_a_task_and_takes_an_adapter(minilm: Path, task: str) -> None:
    labels = LABELS if task in NEW_HEAD else "auto"
    section = BaseSection(model=str(minilm), task=task, labels=labels)  # type: ignore[arg-type]
    base = load_base(section, device=CPU)
    assert sum(parameter.numel() for parameter in base.model.parameters()) > 22_000_000
    model = attach(base.model, LORA, seed=0)
    rows = write_rows(task)
    before = predict_all(model, rows, task_called(task), 0)
    learn(model, task, rate=1e-3)
    after = predict_all(model, rows, task_called(task), 0)
    assert after.losses.sum() < before.losses.sum()


def test_a_real_encoder_knows_what_is_alike(minilm: Path) -> None:
    base = load_base(BaseSection(model=str(minilm), task="embedding"), device=CPU)
    texts = ["a cat sits on the mat", "a kitten rests on a rug", "the share price fell today"]
    read = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = base.model(**read).last_hidden_state
    vectors = average(states, read["attention_mask"])
    alike, other = (float(vectors[0] @ vectors[number]) for number in (1, 2))
    assert alike > 0.5 > 0.2 > other


def test_a_head_that_a_checkpoint_lacks_is_made_up_and_learnt(minilm: Path) -> None:
    """The encoder was published without what masked-lm needs."""
    base = load_base(BaseSection(model=str(minilm), task="masked-lm"), device=CPU)
    assert new_parts(base.model) == ["cls.predictions.transform.dense", MLM_NORM]
    model = attach(base.model, LORA, seed=0)
    assert any("cls.predictions.transform.dense" in name for name in trainable(model))


@pytest.mark.parametrize(("family", "method"), [("bert", "lora"), ("llama", "ia3")])
def test_a_head_trains_in_32_bits_above_a_base_in_16(
    family: str, method: str, tmp_path: Path
) -> None:
    task, section = "classification", METHODS[method]
    base = build(family, task).to(torch.bfloat16)
    before = outputs(base, task)
    model = attach(base, section, seed=0)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    with base_only(model):
        assert torch.equal(outputs(model, task), before)
    learn(model, task, rate=1e-3)
    after = outputs(model, task)
    folder = save(model, tmp_path / "adapter", section.method)
    again = load_adapter(build(family, task).to(torch.bfloat16), folder)
    assert torch.equal(outputs(again, task), after)


@pytest.mark.parametrize(
    "content",
    [
        '{"task": ["x"]}',
        '{"task": "classification", "labels": []}',
        '{"task": "causal-lm", "labels": ["a", "b"]}',
        '{"task": "classification", "labels": ["a", "\\u001b[31m"]}',
        '{"task": "regression", "head": {"hidden": 4, "dropout": 2.0}}',
        '{"task": "regression", "head": {"hidden": 99999999, "dropout": 0.0}}',
        '{"task": "regression", "code": "x"}',
        "[]",
        "{",
    ],
)
def test_what_a_stranger_says_of_a_task_is_checked(content: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(InputError, match="does not say what the adapter does"):
        read_task(tmp_path)


def test_a_task_is_not_read_from_outside_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "adapter"
    inside.mkdir()
    (tmp_path / "task.json").write_text('{"task": "regression"}')
    (inside / "task.json").symlink_to(tmp_path / "task.json")
    with pytest.raises(InputError, match="does not say what the adapter does"):
        read_task(inside)


def test_a_layer_before_the_head_stands_before_the_last_one(tmp_path: Path) -> None:
    model = attach(build("bert", "classification"), METHODS["head with a layer before"], seed=0)
    assert isinstance(model.classifier, torch.nn.Sequential)
    assert isinstance(model.bert.pooler.dense, torch.nn.Linear)
    with pytest.raises(InputError, match="a layer that its family knows nothing of"):
        fold(model)
    folder = save(learn(model, "classification"), tmp_path / "adapter", "head")
    below = load_adapter(build("bert", "classification"), folder)
    forget_before(below)
    over = learn(attach(below.requires_grad_(requires_grad=False), LORA, seed=0), "classification")
    above = save(over, tmp_path / "above")
    assert read_task(above)["head"] == {"hidden": 8, "dropout": 0.1}
    again = load_adapter(load_adapter(build("bert", "classification"), folder), above)
    assert torch.equal(outputs(again, "classification"), outputs(over, "classification"))


@pytest.mark.parametrize(
    ("family", "task", "method"),
    [
        ("bert", "masked-lm", "bitfit"),
        ("bert", "masked-lm", "full"),
        ("mixtral", "causal-lm", "full"),
        ("qwen2_moe", "causal-lm", "top"),
        ("t5", "seq2seq", "top"),
        ("t5", "seq2seq", "full"),
    ],
)
def test_parameters_that_are_no_layer_are_saved_and_found(
    family: str, task: str, method: str, tmp_path: Path
) -> None:
    model = learn(attach(build(family, task), METHODS[method], seed=0), task)
    folder = save(model, tmp_path / "adapter", method)
    loaded = load_adapter(build(family, task), folder)
    assert torch.equal(outputs(loaded, task), outputs(model, task))


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_an_adapter_without_a_note_is_what_peft_says(method: str, tmp_path: Path) -> None:
    model = attach(build("llama", "classification"), METHODS[method], seed=0)
    folder = save(learn(model, "classification"), tmp_path / "adapter", method)
    (folder / "task.json").unlink()
    found = read_task(folder)
    assert (found["task"], found["labels"]) == ("classification", ["0", "1", "2"])
