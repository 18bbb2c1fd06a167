"""A flat row is learnt as its documents are alone, by every family that can, and refused else.

The models have random weights, wide enough for attention to matter: at the usual size of random
weights a token hardly looks at the others, and a leak would not show.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    DogeConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    T5Config,
)
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Batch, Layout, collate, flatten, make_update
from peftkit.data.example import Example
from peftkit.errors import RunError
from peftkit.fast import varlen
from peftkit.fast.loss import summed_loss, token_losses
from peftkit.pipeline.choices import TOLERANCE, Choices, keep_choices, packing_error
from peftkit.recipe.sections.adapter import LoraSection

VOCABULARY = 61
BASIC: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
USUAL = BASIC | {"intermediate_size": 32, "max_position_embeddings": 128}
GROUPED = USUAL | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
WINDOW = {"sliding_window": 8}
BOTH = {"layer_types": ["sliding_attention", "full_attention"]}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**WIDE),
    "mistral": MistralConfig(**GROUPED, **WINDOW),
    "gemma2": Gemma2Config(**WIDE, **WINDOW, **BOTH, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**WIDE, **WINDOW, **BOTH),
    "phi": PhiConfig(**USUAL),
    "gpt2": GPT2Config(**BASIC, n_positions=128, **NO_DROPOUT),
    # Its layers are not told of the window, only the mask is.
    "qwen2-moe": Qwen2MoeConfig(**GROUPED, **WINDOW, **BOTH, **EXPERTS, use_sliding_window=True),
    # Its packed rows see each other, for it has no eye for positions; flat rows need none.
    "opt": OPTConfig(**BASIC, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0),
}
REFUSED = {
    "bloom": (BloomConfig(**BASIC), "does not go through the attention interface"),
    "falcon": (FalconConfig(**BASIC), "does not go through the attention interface"),
    "mamba": (MambaConfig(**BASIC), "`linear_attention`"),
    "llama4": (Llama4TextConfig(**GROUPED), "`chunked_attention`"),
    "gpt-oss": (GptOssConfig(**WIDE, num_local_experts=2, num_experts_per_tok=1), "sinks"),
    "gpt2": (GPT2Config(**BASIC, n_positions=128), "`attn_pdrop: 0.1`"),
}


def build(config: Any, *, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


def adapt(family: str = "llama", *, dtype: torch.dtype = torch.float32) -> Any:
    """A model with LoRA all over, trained a little, as it were: no factor is zero."""
    model = attach(build(FAMILIES[family], dtype=dtype), LoraSection(rank=1), seed=1)
    draw = torch.Generator().manual_seed(2)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.1, generator=draw)
    return model


def adapt_flat(family: str = "llama", *, dtype: torch.dtype = torch.float32) -> Any:
    model = adapt(family, dtype=dtype)
    assert varlen.enable(model) is None
    return model


def write(*lengths: int, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        trained = draw.random(length) < 0.7
        trained[-1], trained[0] = True, False
        tokens = draw.integers(3, VOCABULARY, length).astype(np.int32)
        made.append(Example(tokens, trained, f"f:{number}", str(number), "text"))
    return made


DOCUMENTS = write(9, 1, 70, 33, 2, 20, 33, 7)


def alone(model: Any, documents: Sequence[Example] = DOCUMENTS) -> Tensor:
    """Losses of the documents one by one, end to end."""
    losses = [token_losses(model, collate([[document]], 0))[0] for document in documents]
    return torch.cat(losses)


def gradients(model: Any, losses: Tensor) -> Tensor:
    found = torch.autograd.grad(losses.sum(), list(trainable(model).values()))
    assert all(gradient.norm() > 0 for gradient in found)
    return torch.cat([gradient.flatten() for gradient in found])


def error(one: Tensor, right: Tensor) -> float:
    return float((one - right).detach().double().norm() / right.detach().double().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flat_row_has_the_losses_and_gradients_of_its_documents_alone(family: str) -> None:
    model = adapt(family)
    losses = alone(model)
    wanted = gradients(model, losses)
    assert varlen.enable(model) is None
    flat = token_losses(model, flatten(DOCUMENTS))
    torch.testing.assert_close(flat[0], losses, rtol=1e-4, atol=1e-4)
    assert error(gradients(model, flat), wanted) < 1e-4


@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen2-moe"])
def test_a_forgotten_window_would_have_shown(family: str) -> None:
    config = FAMILIES[family]
    losses = alone(build(config))
    wide = type(config)(**config.to_dict() | {"sliding_window": 128})
    assert error(alone(build(wide)), losses) > 0.01


def test_in_bfloat16_it_is_as_near_as_padding_is() -> None:
    model = adapt(dtype=torch.bfloat16)
    exact = alone(adapt())
    padded = token_losses(model, collate([[document] for document in DOCUMENTS], 0))
    padded = torch.cat([row[: d.length] for row, d in zip(padded, DOCUMENTS, strict=True)])
    assert varlen.enable(model) is None
    flat = token_losses(model, flatten(DOCUMENTS))[0]
    assert error(flat, exact) < 1.5 * error(padded, exact) < 0.05


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_documents_do_not_influence_each_other(family: str) -> None:
    model = adapt_flat(family)
    others = [*DOCUMENTS]
    others[2] = write(70, seed=5)[0]
    before, after = (token_losses(model, flatten(each))[0] for each in (DOCUMENTS, others))
    start, end = 10, 80
    assert (before - after)[start:end].abs().max() > 0.1
    torch.testing.assert_close(before[:start], after[:start], rtol=0, atol=1e-6)
    torch.testing.assert_close(before[end:], after[end:], rtol=0, atol=1e-6)


def test_the_order_of_documents_does_not_matter() -> None:
    model, order = adapt_flat("mistral"), [3, 7, 0, 5, 1, 6, 2, 4]
    lengths = [document.length for document in DOCUMENTS]
    losses = token_losses(model, flatten(DOCUMENTS))[0].split(lengths)
    shuffled = token_losses(model, flatten([DOCUMENTS[i] for i in order]))[0]
    expected = torch.cat([losses[i] for i in order])
    torch.testing.assert_close(shuffled, expected, rtol=1e-5, atol=1e-5)


def test_twice_the_same_is_bit_for_bit_the_same() -> None:
    model = adapt_flat("gemma3")
    one, other = (gradients(model, token_losses(model, flatten(DOCUMENTS))) for _ in range(2))
    assert torch.equal(one, other)


def test_less_is_kept_for_the_backward_pass_than_with_a_dense_mask() -> None:
    def kept(model: Any, batch: Batch) -> int:
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
            return tensor

        held: list[Tensor] = []  # else an address may come twice
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            token_losses(model, batch)
        return sum(seen.values())

    documents = write(*[60] * 8, 120, 30, 2)
    dense = kept(adapt(), collate([documents], 0))
    flat = kept(adapt_flat(), flatten(documents))
    assert flat < dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_steps_lead_where_the_plain_path_leads(dtype: torch.dtype) -> None:
    def train(layout: Layout) -> list[float]:
        model = adapt(dtype=dtype).train()
        if layout.flat:
            assert varlen.enable(model) is None
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.03)
        losses = []
        for step in range(8):
            update = make_update(write(9, 30, 1, 17, 4, seed=step % 2), layout)
            loss = sum(summed_loss(model, each) for each in update.micro_batches)
            (loss / update.trained_tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item() / update.trained_tokens)
        return losses

    plain = train(Layout(packing=False, micro_rows=2, pad_id=0))
    flat = train(Layout(packing=True, micro_rows=2, pad_id=0, flat=True, micro_tokens=40))
    assert plain[-1] < 0.9 * plain[0]
    assert flat == pytest.approx(plain, rel=1e-4 if dtype == torch.float32 else 2e-2)


@given(
    lengths=some.lists(some.integers(1, 50), min_size=1, max_size=12), budget=some.integers(0, 120)
)
def test_micro_batches_hold_every_document_once_and_keep_to_the_budget(
    lengths: list[int], budget: int
) -> None:
    documents = write(*lengths)
    update = make_update(documents, Layout(True, 1, 0, flat=True, micro_tokens=budget))
    found = []
    for batch in update.micro_batches:
        assert batch.lengths is not None
        assert batch.real_tokens == sum(batch.lengths) == batch.inputs.shape[1]
        assert batch.inputs.shape[0] == 1
        assert batch.real_tokens <= max(budget, *lengths)
        found += [tuple(part.tolist()) for part in batch.inputs[0].split(batch.lengths)]
    assert sorted(found) == sorted(tuple(document.tokens.tolist()) for document in documents)
    assert update.real_tokens == sum(lengths)
    assert update.trained_tokens == sum(document.trained_tokens for document in documents)


@pytest.mark.parametrize("budget", [0, 80, 100, 1000])
def test_the_budget_changes_memory_and_not_the_result(budget: int) -> None:
    model = adapt()
    expected = alone(model).sum()
    wanted = gradients(model, expected)
    assert varlen.enable(model) is None
    update = make_update(DOCUMENTS, Layout(True, 1, 0, flat=True, micro_tokens=budget))
    loss = sum(summed_loss(model, batch) for batch in update.micro_batches)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert error(gradients(model, loss), wanted) < 1e-4


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_run_again_for_the_backward_pass_know_the_documents(*, reentrant: bool) -> None:
    model = adapt_flat("mistral").train()
    wanted = gradients(model, token_losses(model, flatten(DOCUMENTS)))
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    runs: list[Any] = []
    first_layer = model.get_base_model().model.layers[0].self_attn
    first_layer.register_forward_hook(lambda *_: runs.append(varlen._PASS.get()))
    summed_loss(model, flatten(DOCUMENTS)).backward()
    assert [run is None for run in runs] == [False, True]  # the second after the forward pass
    found = torch.cat([p.grad.flatten() for p in trainable(model).values()])
    assert error(found, wanted) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rows_that_are_not_flat_are_what_they_were(family: str) -> None:
    model = adapt(family)
    rows = [DOCUMENTS[:3], DOCUMENTS[3:]]
    prompt = {
        "input_ids": torch.tensor([[0, 0, 0, 7, 8], [3, 4, 5, 6, 9]]),
        "attention_mask": torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]),
    }
    write_on = partial(model.generate, **prompt, max_new_tokens=12, do_sample=False)
    before, text = token_losses(model, collate(rows, 0)), write_on()
    usual = model.config._attn_implementation
    assert varlen.enable(model) is None
    assert model.config._attn_implementation != usual
    assert torch.equal(token_losses(model, collate(rows, 0)), before)
    assert torch.equal(write_on(), text)
    varlen.disable(model)
    assert model.config._attn_implementation == usual
    assert torch.equal(token_losses(model, collate(rows, 0)), before)


def test_without_the_switch_a_flat_row_takes_the_mask_of_transformers() -> None:
    model = adapt()
    flat = token_losses(model, flatten(DOCUMENTS))
    assert torch.equal(flat, token_losses(model, collate([DOCUMENTS], 0)))


def test_the_cache_stays_off() -> None:
    model = adapt_flat()
    model.config.use_cache = True
    asked: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda *given: asked.append(given[2]), with_kwargs=True)
    token_losses(model, flatten(DOCUMENTS))
    assert asked[0]["use_cache"] is False
    assert asked[0]["position_ids"][0, :12].tolist() == [*range(9), 0, 0, 1]


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_run_flat_rows_says_why(family: str) -> None:
    config, reason = REFUSED[family]
    model = AutoModelForCausalLM.from_config(config)
    usual = model.config._attn_implementation
    assert reason in str(varlen.enable(model))
    assert not varlen.is_on(model)
    assert model.config._attn_implementation == usual


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = T5Config(vocab_size=61, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    assert "encoder" in str(varlen.enable(AutoModelForSeq2SeqLM.from_config(config)))


def test_virtual_tokens_are_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "virtual" in str(varlen.enable(get_peft_model(build(FAMILIES["llama"]), config)))


def test_another_attention_than_those_with_a_plain_mask_is_refused() -> None:
    model = build(FAMILIES["llama"])
    model.set_attn_implementation("flex_attention")
    assert "`flex_attention`" in str(varlen.enable(model))


def test_dropout_that_is_turned_on_later_is_refused() -> None:
    model = adapt_flat().train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    with pytest.raises(varlen.FlatRowError, match="dropped at random"):
        token_losses(model, flatten(DOCUMENTS))


def test_lengths_that_are_not_those_of_the_row_are_refused() -> None:
    model, batch = adapt_flat(), flatten(DOCUMENTS)
    with (
        pytest.raises(varlen.FlatRowError, match="5 tokens in the documents"),
        varlen.attending(model, (2, 3)),
    ):
        model(input_ids=batch.inputs, use_cache=False)


def test_attention_that_is_never_asked_is_noticed() -> None:
    model = adapt_flat()
    with pytest.raises(varlen.FlatRowError, match="never asked"), varlen.attending(model, (2, 3)):
        pass


@pytest.mark.parametrize(
    ("mask", "window", "same"),
    [
        (causal_mask_function, None, True),
        (sliding_window_causal_mask_function(8), 8, True),
        (sliding_window_causal_mask_function(8), 9, False),
        (sliding_window_causal_mask_function(8), None, False),
        (sliding_window_causal_mask_function(200), 200, True),
        (chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long)), 8, False),
        (chunked_causal_mask_function(10, torch.zeros(1, dtype=torch.long)), 10, False),
        (and_masks(bidirectional_mask_function), None, False),
    ],
)
def test_only_masks_that_lengths_and_a_window_can_say_are_taken(
    mask: Any, window: int | None, *, same: bool
) -> None:
    documents = varlen.Documents((5, 30, 7), window)
    assert varlen._means(mask, documents, torch.device("cpu")) is same


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_lets_flat_rows_through_where_they_are_exact(family: str) -> None:
    assert packing_error(adapt_flat(family), DOCUMENTS, 0, flat=True) < TOLERANCE["float32"] / 10


def test_the_gate_sees_documents_that_look_at_each_other() -> None:
    model = adapt_flat()

    def look_back(_module: Any, _inputs: Any, hidden: Tensor) -> Tensor:
        return hidden + hidden.roll(1, dims=1)

    model.get_base_model().model.layers[0].mlp.register_forward_hook(look_back)
    assert packing_error(model, DOCUMENTS, 0, flat=True) > 10 * TOLERANCE["float32"]


def test_a_family_that_looks_into_its_mask_fails_before_it_is_wrong() -> None:
    model = build(DogeConfig(**GROUPED))
    assert varlen.enable(model) is None
    with pytest.raises(AttributeError, match="Documents"):
        token_losses(model, flatten(DOCUMENTS))


def test_an_earlier_choice_is_kept_or_the_run_ends() -> None:
    facts = Choices(1, "float32", 2, "cpu", True, {}, flat=True, micro_tokens=64).facts
    model = adapt()
    choices = keep_choices(facts, model)
    assert varlen.is_on(model)
    assert choices.lay_out(3) == Layout(True, 2, 3, flat=True, micro_tokens=64)
    with pytest.raises(RunError, match="attention interface"):
        keep_choices(facts, build(REFUSED["bloom"][0]))


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_says_the_same(family: str, dtype: torch.dtype) -> None:
    wanted = alone(adapt(family))
    model = adapt_flat(family, dtype=dtype).to("cuda")
    flat = token_losses(model, flatten(DOCUMENTS).to(torch.device("cuda")))[0].cpu()
    assert error(flat, wanted) < (1e-3 if dtype == torch.float32 else 5e-2)
