"""LoRA in the base's number format computes what peft computes, and leaves alone what it cannot."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, adapt, assert_same_gradients, batch_of, build, gradients
from torch import Tensor, nn

from peftkit.adapters.attach import base_only, trainable
from peftkit.fast import lora
from peftkit.fast.lora import UpdatedLinear
from peftkit.fast.loss import summed_loss

PLAIN = sorted(set(FAMILIES) - {"falcon h1", "recurrent gemma"})


def read(model: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients, with the random numbers of a seed: some families drop activations."""
    torch.manual_seed(0)
    loss = summed_loss(model, batch_of())
    return float(loss.detach()), gradients(model, loss)


@pytest.mark.parametrize("family", PLAIN)
def test_loss_and_gradients_are_those_of_peft(family: str) -> None:
    plain, fast = adapt(family).train(), adapt(family).train()
    assert lora.enable(fast) is None
    assert lora.is_on(fast)
    wanted, found = read(plain), read(fast)
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert_same_gradients(found[1], wanted[1], 1e-4)


@pytest.mark.parametrize("family", PLAIN)
def test_in_bfloat16_both_are_as_near_to_the_exact_ones(family: str) -> None:
    """Rounding to 16 bits moves each; it must not move this way further than peft's."""
    plain, fast = (adapt(family, dtype=torch.bfloat16).train() for _ in range(2))
    assert lora.enable(fast) is None
    wanted, usual, found = read(adapt(family).train()), read(plain), read(fast)
    assert found[0] == pytest.approx(wanted[0], rel=2e-3, abs=2 * abs(usual[0] - wanted[0]))
    assert {gradient.dtype for gradient in found[1].values()} == {torch.float32}

    def far(gradients: dict[str, Tensor]) -> float:
        gaps = [(gradients[name] - wanted[1][name]).square().sum() for name in wanted[1]]
        return float(torch.stack(gaps).sum().sqrt())

    size = float(torch.cat([each.flatten() for each in wanted[1].values()]).norm())
    assert far(found[1]) <= max(1.5 * far(usual[1]), 0.02 * size)


def test_autograd_agrees_in_double_precision() -> None:
    torch.manual_seed(0)
    x, weight, bias, down, up = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=needs)
        for shape, needs in zip(
            ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2)), (True, False, False, True, True), strict=True
        )
    )
    seen = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def compute(dropped: bool) -> Any:  # noqa: FBT001 - one of two cases
        def function(*inputs: Any) -> Any:
            one, other, *small = inputs
            return UpdatedLinear.apply(one, other if dropped else None, weight, bias, *small, 0.7)

        return function

    for dropped in (False, True):
        assert torch.autograd.gradcheck(compute(dropped), (x, seen, down, up), fast_mode=True)


def test_evaluation_is_left_to_peft() -> None:
    """A figure is that of the adapter as others will load it, to the last bit."""
    plain, fast, batch = adapt(dtype=torch.bfloat16), adapt(dtype=torch.bfloat16), batch_of()
    assert lora.enable(fast) is None
    with torch.no_grad():
        assert torch.equal(summed_loss(fast.eval(), batch), summed_loss(plain.eval(), batch))
        bare = summed_loss(build(dtype=torch.bfloat16), batch)
        with base_only(fast.train()):
            assert torch.equal(summed_loss(fast, batch), bare)


def test_it_can_be_switched_off_again() -> None:
    model = adapt(dtype=torch.bfloat16).train()
    before = gradients(model, summed_loss(model, batch_of()))
    assert lora.enable(model) is None
    during = gradients(model, summed_loss(model, batch_of()))
    lora.disable(model)
    after = gradients(model, summed_loss(model, batch_of()))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(not torch.equal(during[name], before[name]) for name in before)


def test_dropout_drops_as_often_as_it_says_and_by_the_seed() -> None:
    model, batch = adapt(dropout=0.5).train(), batch_of()
    assert lora.enable(model) is None

    def lose(seed: int) -> float:
        torch.manual_seed(seed)
        return float(summed_loss(model, batch).detach())

    assert lose(1) == lose(1)
    assert len({lose(seed) for seed in range(5)}) == 5
    model.eval()
    assert lose(1) == lose(2)


def test_dropped_inputs_have_the_gradient_of_peft() -> None:
    """Both draw the same mask: at the same place in the stream of random numbers."""
    plain, fast, batch = adapt(dropout=0.4).train(), adapt(dropout=0.4).train(), batch_of()
    assert lora.enable(fast) is None
    found = []
    for model in (plain, fast):
        torch.manual_seed(3)
        found.append(gradients(model, summed_loss(model, batch)))
    assert_same_gradients(found[1], found[0], 1e-4)


def test_only_what_a_backward_pass_needs_is_kept() -> None:
    """No float32 copy of a layer's input: the base's number format holds everything of its size."""

    def kept(model: Any) -> set[torch.dtype]:
        large: set[torch.dtype] = set()

        def note(tensor: torch.Tensor) -> torch.Tensor:
            own = any(tensor.data_ptr() == p.data_ptr() for p in model.parameters())
            if tensor.numel() >= 2 * 17 * 32 and not own:
                large.add((tensor.dtype, tuple(tensor.shape)))
            return tensor

        layer = next(module for module in model.modules() if isinstance(module, lora.LoraLinear))
        inputs = torch.randn(2, 17, 32, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(inputs)
        return {dtype for dtype, _ in large}

    model = adapt(dtype=torch.bfloat16).train()
    assert torch.float32 in kept(model)
    assert lora.enable(model) is None
    assert kept(model) == {torch.bfloat16}


def make(family: str = "llama", **settings: Any) -> Any:
    config = LoraConfig(r=2, target_modules=["q_proj"], **settings)
    return get_peft_model(build(family), config)


def hooked() -> Any:
    model = make()
    layer = next(module for module in model.modules() if isinstance(module, lora.LoraLinear))
    layer.base_layer.register_forward_hook(lambda *_: None)
    return model


def two_at_once() -> Any:
    model = make()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    return model


def merged() -> Any:
    model = make()
    model.merge_adapter()
    return model


def unfrozen() -> Any:
    model = make()
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model


REFUSED = {
    "no LoRA": (build, "there is no LoRA"),
    "DoRA": (lambda: make(use_dora=True), "variant of LoRA"),
    "biases": (lambda: make(lora_bias=True, family="phi"), "biases"),
    "a hook": (hooked, "watches or moves"),
    "two adapters": (two_at_once, "2 adapters are active at once"),
    "merged": (merged, "merged"),
    "a base that trains": (unfrozen, "trains itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_is_left_to_peft(case: str) -> None:
    build_it, reason = REFUSED[case]
    model = build_it()
    found = lora.enable(model)
    assert found is not None
    assert reason in found
    assert not lora.is_on(model)


def test_every_kind_of_layer_is_covered() -> None:
    """GPT-2 keeps its weights the other way round, and Phi has biases."""
    kinds = {
        type(module.base_layer)
        for family in ("gpt2", "phi")
        for module in adapt(family).modules()
        if isinstance(module, lora.LoraLinear)
    }
    assert nn.Linear in kinds
    assert {kind.__name__ for kind in kinds} == {"Linear", "Conv1D"}
    assert all(p.dtype == torch.float32 for p in trainable(adapt(dtype=torch.bfloat16)).values())
