"""All terms together: they add up, micro-batches only round, and the loss told is the data's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import full, load, make_examples, move

from peftkit.adapters.attach import trainable
from peftkit.data.batch import Layout, make_update
from peftkit.errors import RecipeError
from peftkit.fast.paths import Paths
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.recipe.sections.regularize import acting
from peftkit.recipe.sections.train import TrainSection
from peftkit.train.loop import accumulate
from peftkit.train.processes import ALONE, Processes
from peftkit.train.regularize.terms import Surroundings, Terms, make_terms, ruled_out

CPU = torch.device("cpu")
SOURCE = {"source": "general.txt", "format": "text"}
EVERY = (
    {"l2sp": 0.3},
    {"ewc": {"strength": 50, "rows": 3, **SOURCE}},
    {"kl": {"strength": 0.5, "rows": 3, **SOURCE}},
    {"label_smoothing": 0.1},
    {"decay_to_init": 0.2},
)
"""All that draw nothing."""


def wanted(*entries: Mapping[str, Any]) -> dict[str, Any]:
    return acting(TrainSection.model_validate({"steps": 1, "regularize": entries}).regularize)


def terms_of(
    model: Any, *entries: Mapping[str, Any], layout: Layout | None = None, at: Processes = ALONE
) -> Terms:
    general = {"ewc": make_examples(5, seed=4), "kl": make_examples(7, seed=5)}
    around = Surroundings(Paths(), layout or Layout(False, 16, 0), general, "made", 7, at)
    return make_terms(model, wanted(*entries), around)


def step(model: Any, terms: Terms, *, micro_rows: int = 16) -> tuple[float, dict[str, float], Any]:
    """Loss, terms and gradients of one update."""
    model.zero_grad(set_to_none=True)
    model.train()
    update = make_update(make_examples(8, seed=6), Layout(False, micro_rows, 0))
    loss = accumulate(model, update, CPU, seed=1, loss=terms.loss)
    added = {name: value.item() for name, value in terms.penalties(model, 3, update).items()}
    gradients = torch.cat([p.grad.flatten() for p in trainable(model).values()])
    return loss.item(), added, gradients


def test_strength_0_is_as_if_it_were_not_there() -> None:
    off = [{"l2sp": 0}, {"ewc": {"strength": 0, **SOURCE}}, {"r_drop": 0.0}, {"neftune": 0}]
    assert wanted(*off) == {}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_gradient_of_all_is_the_sum_of_each(tiny_llama: Path, kind: str) -> None:
    def model() -> Any:
        return load(tiny_llama) if kind == "lora" else full(tiny_llama)

    fresh = model()
    plain_loss, _, plain = step(move(fresh), terms_of(model()))
    total = plain.clone()
    for entry in EVERY:
        one = model()
        terms = terms_of(one, entry)
        _, added, gradient = step(move(one), terms)
        assert list(added) == list(entry)
        assert next(iter(added.values())) > 0
        total += gradient - plain
    together = model()
    terms = terms_of(together, *EVERY)
    loss, added, gradient = step(move(together), terms)
    assert sorted(added) == sorted(name for entry in EVERY for name in entry)
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert torch.allclose(gradient, total, atol=1e-4 * float(total.abs().max()))
    assert not torch.allclose(gradient, plain, atol=1e-2 * float(total.abs().max()))


def test_micro_batches_change_nothing_but_rounding(tiny_llama: Path) -> None:
    found = []
    for micro_rows in (1, 16):
        model = load(tiny_llama)
        terms = terms_of(model, *EVERY, layout=Layout(False, micro_rows, 0))
        found.append(step(move(model), terms, micro_rows=micro_rows))
    (loss, added, gradient), (other_loss, other_added, other) = found
    assert loss == pytest.approx(other_loss, abs=1e-5)
    assert added == pytest.approx(other_added, rel=1e-4)
    assert torch.allclose(gradient, other, atol=1e-5)


def test_two_passes_keep_the_loss_and_its_gradient(tiny_llama: Path) -> None:
    """Without dropout both passes are one: noise alone makes them differ."""
    model = move(load(tiny_llama))
    plain = step(model, terms_of(model))
    noisy = step(model, terms_of(model, {"r_drop": 1.0}, {"neftune": 1e-3}))
    assert noisy[0] == pytest.approx(plain[0], abs=1e-3)
    assert 0 < noisy[1]["r_drop"] < 1e-3
    assert torch.allclose(plain[2], noisy[2], atol=1e-2 * float(plain[2].abs().max()))


def test_what_is_drawn_follows_from_the_seed(tiny_llama: Path) -> None:
    section = LoraSection(rank=4, dropout=0.2)
    entries = ({"r_drop": 1.0}, {"neftune": 5}, {"kl": {"strength": 0.5, **SOURCE}})
    found = []
    for _ in range(2):
        model = load(tiny_llama, section)
        terms = terms_of(model, *entries)
        found.append(step(move(model), terms))
        torch.rand(17)  # whatever else was drawn meanwhile
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])


def test_several_processes_add_up_to_one(tiny_llama: Path) -> None:
    """Penalties of weights are the first's; of rows, each has its own."""
    entries = [entry for entry in EVERY if "label_smoothing" not in entry]
    model = load(tiny_llama)
    alone = terms_of(model, *entries)
    divided = [terms_of(model, *entries, at=Processes(rank, 2)) for rank in (0, 1)]
    move(model)
    update = make_update(make_examples(4), Layout(False, 16, 0))

    def take(terms: Terms) -> dict[str, float]:
        return {name: value.item() for name, value in terms.penalties(model, 2, update).items()}

    whole = take(alone)
    gradients = [p.grad.clone() for p in trainable(model).values()]
    model.zero_grad(set_to_none=True)
    first, second = (take(terms) for terms in divided)
    assert list(first) == list(second) == list(whole)
    assert {name: first[name] + second[name] for name in first} == pytest.approx(whole, rel=1e-4)
    assert {name for name, value in second.items() if value} == {"kl"}
    for parameter, wanted_gradient in zip(trainable(model).values(), gradients, strict=True):
        assert torch.allclose(parameter.grad, wanted_gradient, atol=1e-5)


def test_two_passes_without_chance_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(RecipeError, match="has none") as caught:
        terms_of(load(tiny_llama), {"r_drop": 1.0})
    assert caught.value.hint == "`--set adapter.dropout=0.1`"
    assert terms_of(load(tiny_llama, LoraSection(dropout=0.1)), {"r_drop": 1.0}).r_drop == 1


def test_fast_paths_that_cannot_carry_an_entry_are_ruled_out() -> None:
    assert ruled_out(["l2sp", "ewc", "kl", "decay_to_init"]) == {}
    assert set(ruled_out(["label_smoothing", "neftune"])) == {"head", "frozen"}
    assert "`r_drop`" in ruled_out(["r_drop", "label_smoothing"])["head"]
