"""The Fisher information: of single documents, in closed form, and as autograd alone has it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import full, load, make_examples
from torch import nn
from torch.func import functional_call, grad
from torch.nn.functional import binary_cross_entropy_with_logits

from peftkit.adapters.attach import trainable
from peftkit.adapters.updates import layer_updates
from peftkit.data.batch import collate
from peftkit.fast.loss import summed_loss
from peftkit.train.regularize.fisher import measure_fisher


class Logistic(nn.Module):
    """Logistic regression, with an input that gradients can be asked of."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.read = nn.Identity()
        self.linear = nn.Linear(len(weights), 1).double()
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([weights]))
            self.linear.bias.zero_()

    def get_input_embeddings(self) -> nn.Module:
        return self.read

    def loss(self, x: torch.Tensor, y: float) -> torch.Tensor:
        logit = self.linear(self.read(x[None].clone()))
        return binary_cross_entropy_with_logits(logit, torch.full_like(logit, y))


def logistic_fisher(model: Logistic, rows: list[tuple[torch.Tensor, float]], way: str) -> Any:
    losses = [partial(model.loss, x, y) for x, y in rows]
    if way == "hooks":
        model.requires_grad_(requires_grad=False)
        return measure_fisher(model, losses, {"linear": model.linear}, {})
    return measure_fisher(
        model, losses, {}, {f"linear.{n}": p for n, p in model.linear.named_parameters()}
    )


@pytest.mark.parametrize("way", ["hooks", "own gradients"])
def test_of_a_logistic_model_it_is_the_closed_form(way: str) -> None:
    """Each input with label 1 as often as the model says: F = mean p (1 - p) x²."""
    model = Logistic([0.7, -1.1, 0.4])
    inputs = torch.tensor([[1.0, 0.5, -2.0], [0.0, 1.5, 1.0], [-1.0, 0.2, 0.3]]).double()
    # Shift each input along the weights until its probability is a round number of tenths.
    weights, wanted = model.linear.weight[0].detach(), torch.tensor([0.2, 0.7, 0.4]).double()
    inputs += ((wanted.logit() - inputs @ weights) / weights.square().sum())[:, None] * weights
    ones = (10 * wanted).round().int().tolist()
    rows = [(x, float(n < k)) for x, k in zip(inputs, ones, strict=True) for n in range(10)]
    found = logistic_fisher(model, rows, way)
    closed = ((wanted * (1 - wanted))[:, None] * inputs.square()).mean(0)
    assert torch.allclose(found["linear.weight"][0].double(), closed, atol=1e-6)
    assert found["linear.bias"].item() == pytest.approx(
        (wanted * (1 - wanted)).mean().item(), abs=1e-6
    )


def test_the_square_is_of_each_document_and_not_of_their_mean() -> None:
    """Two documents that pull one weight both ways: their mean gradient is 0, the Fisher is not."""
    model = Logistic([0.0])
    rows = [(torch.ones(1).double(), 0.0), (torch.ones(1).double(), 1.0)]
    assert logistic_fisher(model, rows, "hooks")["linear.weight"].item() == pytest.approx(0.25)


def per_document(model: Any, rows: list[Any]) -> list[Callable[[], torch.Tensor]]:
    batches = [collate([[row]], 0) for row in rows]
    counts = [row.trained_tokens for row in rows]
    return [
        lambda batch=batch, count=count: summed_loss(model, batch) / count
        for batch, count in zip(batches, counts, strict=True)
    ]


def by_functions(model: Any, rows: list[Any], names: list[str]) -> dict[str, torch.Tensor]:
    """The plain twin: torch.func's per-sample gradients of dense weights, squared and averaged."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    chosen = {name: parameters[name] for name in names}

    def loss(own: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        logits = functional_call(
            model, parameters | own, (), {"input_ids": ids[None], "use_cache": False}
        ).logits[0, :-1]
        return -logits.log_softmax(-1).gather(-1, ids[1:, None]).mean()

    each = [grad(loss)(chosen, torch.tensor(row.tokens, dtype=torch.long)) for row in rows]
    return {name: torch.stack([one[name].square() for one in each]).mean(0) for name in names}


def test_hooks_give_what_per_sample_gradients_give(tiny_llama: Path) -> None:
    """Of the dense weights of frozen layers, which no parameter's own gradient would tell."""
    model = load(tiny_llama).eval()
    rows = make_examples(5)
    updates = layer_updates(model)
    layers = {update.name: update.base for update in updates}
    found = measure_fisher(model, per_document(model, rows), layers, {})
    assert len(layers) == 14
    wanted = by_functions(model, rows, [f"{name}.base_layer.weight" for name in layers])
    for name in layers:
        twin = wanted[f"{name}.base_layer.weight"]
        assert torch.allclose(found[f"{name}.weight"], twin, rtol=1e-3, atol=1e-8), name
        assert twin.max() > 0


def test_what_trains_itself_has_its_own_gradient(tiny_llama: Path) -> None:
    model = full(tiny_llama).eval()
    rows = make_examples(4, seed=1)
    parameters = trainable(model)
    found = measure_fisher(model, per_document(model, rows), {}, parameters)
    wanted = by_functions(model, rows, list(parameters))
    for name, twin in wanted.items():
        assert torch.allclose(found[name], twin, rtol=1e-3, atol=1e-8), name
    assert all(p.grad is None for p in model.parameters())
