"""What stands before the text: where it starts, how it is answered with, saved and resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import GROUPED, SIZES
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.prompts import start_from_text, virtual_tokens
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.base.locate import Origin
from peftkit.base.targets import first_trained_block, linear_layers
from peftkit.base.upstream import quiet
from peftkit.data.batch import collate
from peftkit.data.example import Example
from peftkit.errors import InputError, RecipeError
from peftkit.evaluate.generation import answer_all
from peftkit.fast import varlen
from peftkit.fast.frozen import find_cut
from peftkit.fast.head import find_head
from peftkit.fast.loss import summed_loss, token_losses
from peftkit.fast.recompute import recompute, refuse_recompute
from peftkit.fast.refusals import refuse_shared_rows, unwrap
from peftkit.pipeline.choices import packing_error
from peftkit.recipe.sections.adapter import (
    AdapterSection,
    LoraSection,
    PrefixSection,
    PromptSection,
    PTuningSection,
)
from peftkit.train.checkpoint import check_fit, newest_checkpoint, restore, save_checkpoint
from peftkit.train.optimizer import make_optimizer

IDS = torch.arange(24).reshape(2, 12)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": GROUPED | {"head_dim": 16},
    "mistral": GROUPED | {"sliding_window": 6},
    "gemma3_text": GROUPED | {"sliding_window": 6},
    "phi": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"ffn_hidden_size": 48},
}
METHODS: dict[str, AdapterSection] = {
    "prefix": PrefixSection(method="prefix", tokens=5),
    "projected": PrefixSection(method="prefix", tokens=5, projection=True, projection_size=7),
    "prompt": PromptSection(method="prompt", tokens=5),
    "mlp": PTuningSection(method="p-tuning", tokens=5, encoder_size=7),
    "lstm": PTuningSection(method="p-tuning", tokens=5, encoder="lstm", encoder_size=7),
}
OFTEN = ("llama", "gpt2")


class Words:
    """A tokenizer: a letter is a token, and tokens are written as numbers."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + [ord(letter) % 64 for letter in text]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids)) if skip_special_tokens else ""


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32) -> Any:
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)  # so that one token is clearly the best
    return model.requires_grad_(requires_grad=False)


def grown(name: str, family: str = "llama", **settings: Any) -> Any:
    """A model with an adapter that has been trained a little, so that it says something."""
    model = attach(build(family, **settings), METHODS[name], seed=0)
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()


def save(model: Any, folder: Path, name: str = "prefix") -> Path:
    method = METHODS[name].method
    save_adapter(model, folder, Origin("org/tiny", folder.parent, "0123abc"), method=method)
    return folder


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor = IDS, **settings: Any) -> torch.Tensor:
    return model.eval()(ids, **settings).logits[:, -ids.shape[1] :].clone()  # type: ignore[no-any-return]


def greedy(model: Any, prompt: list[int], room: int) -> list[int]:
    """The most likely token, one after the other, without a cache."""
    ids = list(prompt)
    for _ in range(room):
        ids.append(int(logits(model, torch.tensor([ids]), use_cache=False)[0, -1].argmax()))
    return ids[len(prompt) :]


def document(tokens: list[int]) -> Example:
    trained = np.array([False] + [True] * (len(tokens) - 1))
    return Example(np.array(tokens, np.int32), trained, "here", "", "")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_it_and_gives_the_base_back(
    family: str, name: str, tmp_path: Path
) -> None:
    before = logits(build(family))
    model = grown(name, family)
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-2)
    with base_only(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), after)
    folder = save(model, tmp_path / "adapter", name)
    assert torch.equal(logits(model), after)  # saving does not change what goes on training
    assert torch.equal(logits(load_adapter(build(family), folder)), after)
    assert torch.equal(logits(PeftModel.from_pretrained(build(family), str(folder))), after)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_a_loop_without_a_cache(family: str, name: str) -> None:
    """Across a sliding window, in batches, padded, and with the adapter switched off."""
    model = grown(name, family)
    prompts = [[1, 2, 3], [7, 8, 9, 10, 11, 12, 13], [5], [3, 2, 1]]
    answers = answer_all(model, prompts, Words(), stops=frozenset(), room=8)
    wanted = [greedy(model, prompt, 8) for prompt in prompts]
    assert [answer.text for answer in answers] == [" ".join(map(str, ids)) for ids in wanted]
    with base_only(model):
        without = answer_all(model, prompts, Words(), stops=frozenset(), room=8)
    plain = answer_all(build(family), prompts, Words(), stops=frozenset(), room=8)
    assert without == plain
    if family in OFTEN:
        assert plain != answers


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", OFTEN)
def test_an_answer_ends_where_the_base_has_no_more_places(family: str, name: str) -> None:
    prompts = [list(range(50))]
    answers = answer_all(grown(name, family), prompts, Words(), stops=frozenset(), room=40)
    assert answers[0].tokens == 64 - 50 - 5


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", OFTEN)
def test_losses_are_those_of_the_text(family: str, name: str) -> None:
    model = grown(name, family)
    rows = [document([1, 2, 3, 4]), document([5, 6, 7, 8, 9, 10])]
    batch = collate([[row] for row in rows], pad_id=0)
    with torch.no_grad():
        losses = token_losses(model, batch)
    assert losses.shape == batch.targets.shape
    for row, found in zip(rows, losses, strict=True):
        ids = torch.tensor([row.tokens.tolist()])
        wanted = torch.nn.functional.cross_entropy(
            logits(model, ids)[0, :-1], ids[0, 1:], reduction="none"
        )
        torch.testing.assert_close(found[: row.length - 1], wanted, atol=1e-4, rtol=1e-4)
        assert not found[row.length - 1 :].any()


def test_a_prefix_starts_next_to_nothing_and_a_projected_one_at_nothing() -> None:
    fresh = attach(build(), METHODS["prefix"], seed=0)
    (parameter,) = trainable(fresh).values()
    assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.2)
    projected = attach(build(), METHODS["projected"], seed=0)
    assert not projected.get_prompt_embedding_to_save("default").any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_starts_as_a_text_reads_it(family: str) -> None:
    words = "hello"
    section = PrefixSection(method="prefix", tokens=5, init_text=words)
    model = attach(build(family), section, seed=0, tokenizer=Words())
    text = torch.tensor([Words()(words, add_special_tokens=False)["input_ids"]])
    both = torch.cat([text.expand(2, -1), IDS], dim=1)
    wanted = logits(build(family), both)[:, 5:]
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("words", ["hi", "hello", "hello world"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_starts_as_a_text_reads_it(family: str, words: str) -> None:
    section = PromptSection(method="prompt", tokens=5, init_text=words)
    model = attach(build(family), section, seed=0, tokenizer=Words())
    letters = (words * 5)[:5]
    text = torch.tensor([Words()(letters, add_special_tokens=False)["input_ids"]])
    both = torch.cat([text.expand(2, -1), IDS], dim=1)
    wanted = logits(build(family), both)[:, 5:]
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)


def test_a_prompt_starts_as_tokens_that_the_seed_draws() -> None:
    words = build().get_input_embeddings().weight
    first, again, other = (
        next(iter(trainable(attach(build(), METHODS["prompt"], seed=seed)).values()))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all((words == row).all(dim=1).any() for row in first)


def test_a_text_that_says_nothing_is_refused() -> None:
    model = attach(build(), METHODS["prompt"], seed=0)
    with pytest.raises(RecipeError, match="the text has no tokens"):
        start_from_text(model, Words(), "")
    with pytest.raises(ValueError, match="cannot start as a text"):
        PrefixSection(method="prefix", projection=True, init_text="hello")


@pytest.mark.parametrize("name", METHODS)
def test_one_row_is_one_text(name: str) -> None:
    model = attach(build(), METHODS[name], seed=0)
    assert refuse_shared_rows(model)
    assert refuse_shared_rows(attach(build(), LoraSection(rank=2), seed=0)) is None
    documents = [document([1, 2, 3, 4]), document([5, 6, 7, 8, 9])]
    with quiet():
        assert packing_error(grown(name), documents, 0) > 1e-2  # why it is refused
    assert isinstance(varlen.enable(model), str)
    assert isinstance(find_head(model), str)
    assert isinstance(find_cut(model), str)
    assert first_trained_block(model, unwrap(model)) == 0
    assert virtual_tokens(model) == 5
    assert virtual_tokens(build()) == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", OFTEN)
def test_blocks_run_again_or_say_why_not(family: str, name: str) -> None:
    model = grown(name, family)
    if METHODS[name].method == "prefix":
        assert "keys and values of the text" in (refuse_recompute(model) or "")
        return
    assert refuse_recompute(model) is None
    batch = collate([[document([1, 2, 3, 4])]], pad_id=0)
    found = []
    for count in (0, 2):
        recompute(model, count)
        torch.manual_seed(0)
        loss = summed_loss(model.train(), batch)
        found.append(torch.autograd.grad(loss, list(trainable(model).values())))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    name: str, tmp_path: Path, *, flat: bool
) -> None:
    def begin() -> tuple[Any, Any]:
        model = attach(build(), METHODS[name], seed=0)
        return model, make_optimizer(trainable(model), weight_decay=0.1, flat=flat)

    def step(model: Any, optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = 0.05
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    model, optimizer = begin()
    for number in range(4):
        if number == 2:
            save_checkpoint(tmp_path, 2, trainable(model), optimizer, digests={}, keep=1)
        step(model, optimizer)
    again, other = begin()
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    check_fit(checkpoint, trainable(again))
    restore(checkpoint, trainable(again), other)
    for _ in range(2):
        step(again, other)
    assert torch.equal(logits(again), logits(model))
    pairs = zip(trainable(again).values(), trainable(model).values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_only_what_was_computed_is_saved(name: str, tmp_path: Path) -> None:
    model = grown(name)
    folder = save(model, tmp_path / "adapter", name)
    tensors = load_file(folder / "adapter_model.safetensors")
    width = 2 * 2 * 2 * 8 if METHODS[name].method == "prefix" else 32
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "prompt_embeddings": (5, width)
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("prefix_projection")
    assert config["inference_mode"]
    assert not config.get("tokenizer_name_or_path")
    again = save(load_adapter(build(), folder), tmp_path / "again", name)
    assert torch.equal(logits(load_adapter(build(), again)), logits(model))


@pytest.mark.parametrize("name", ["prefix", "projected"])
def test_a_prefix_for_another_number_of_blocks_is_refused(name: str, tmp_path: Path) -> None:
    folder = save(grown(name), tmp_path / "adapter", name)
    shapes = module_shapes(build())
    assert verify_adapter(folder, shapes).peft_type == "PREFIX_TUNING"
    upper = {module.replace(".1.", ".2."): shape for module, shape in shapes.items()}
    with pytest.raises(InputError) as refusal:
        verify_adapter(folder, shapes | upper)
    assert "num_layers: the base has 3 blocks" in refusal.value.problems


@pytest.mark.parametrize("name", METHODS)
def test_a_second_one_has_no_place(name: str, tmp_path: Path) -> None:
    folder = save(grown(name), tmp_path / "adapter", name)
    model = load_adapter(build(), folder)
    with pytest.raises(InputError, match="cannot act at once"):
        add_adapter(model, folder, 1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_knows_the_size_of_what_is_put_on(family: str, name: str) -> None:
    with torch.device("meta"):
        planned = trainable(attach(build(family), METHODS[name], seed=0))
    made = trainable(attach(build(family), METHODS[name], seed=0))
    assert {n: p.shape for n, p in planned.items()} == {n: p.shape for n, p in made.items()}


def test_a_base_without_keys_and_values_is_refused() -> None:
    config = AutoConfig.for_model("mamba", **SIZES | {"state_size": 4})
    model = AutoModelForCausalLM.from_config(config).eval()
    assert linear_layers(model)
    with pytest.raises(RecipeError, match=r"a prefix does not fit this base \(mamba\)"):
        attach(model, METHODS["prefix"], seed=0)


def test_a_base_in_16_bits_gets_a_prefix_of_32() -> None:
    model = grown("projected", dtype=torch.bfloat16)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    with base_only(model):
        assert torch.equal(logits(model), logits(build(dtype=torch.bfloat16)))
