"""Penalties of what the model says: as torch has them, and noise of the size of the paper."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import full, load, make_examples, move
from torch.nn.functional import cross_entropy, kl_div

from peftkit.data.batch import Layout, collate, make_update
from peftkit.fast.loss import summed_loss, trained_scores
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.train.regularize.kl import General, distill, divergence
from peftkit.train.regularize.label_smoothing import smoothing
from peftkit.train.regularize.neftune import lengths_at, noise
from peftkit.train.regularize.r_drop import disagreement

PACKED = Layout(True, 8, 0)


def scores(rows: int, classes: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_torch_s() -> None:
    wanted, found = scores(6, 11, 0), scores(6, 11, 1)
    theirs = kl_div(
        found.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
    )
    assert torch.allclose(divergence(wanted, found), theirs.sum(-1), atol=1e-5)
    assert torch.equal(divergence(wanted, wanted), torch.zeros(6))


def test_fewer_tokens_told_apart_are_never_a_larger_divergence() -> None:
    """All others count as one; with all told apart it is the whole."""
    wanted, found = scores(50, 11, 2), scores(50, 11, 3)
    sizes = [divergence(wanted, found, top) for top in (1, 3, 10)]
    whole = divergence(wanted, found)
    for smaller, larger in zip(sizes, [*sizes[1:], whole], strict=True):
        assert (smaller <= larger + 1e-5).all()
    assert torch.allclose(sizes[-1], whole, atol=1e-4)  # the one that is left is a token alone
    assert torch.equal(divergence(wanted, found, 11), whole)
    assert (divergence(wanted, wanted, 3).abs() < 1e-6).all()


def general(count: int = 6) -> General:
    return General(make_examples(count, seed=9), 4, PACKED, seed=3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_distillation_starts_at_nothing_and_pulls_back(tiny_llama: Path, method: str) -> None:
    model = full(tiny_llama) if method == "full" else load(tiny_llama)
    update = general().at(1, 0, 1)
    assert distill(model, update, 1.0).item() == pytest.approx(0, abs=1e-6)
    move(model)
    model.zero_grad(set_to_none=True)
    before = distill(model, update, 1.0).item()
    assert before > 1e-3
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.sub_(1e-2 * parameter.grad)
    assert distill(model, update, 1.0).item() < before
    assert model.training


def test_processes_that_divide_the_rows_add_up_to_the_whole(tiny_llama: Path) -> None:
    model = move(load(tiny_llama))
    whole = distill(model, general().at(2, 0, 1), 0.5)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    parts = [distill(model, general().at(2, part, 2), 0.5) for part in (0, 1)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)
    summed = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(summed) == 28
    for ours, theirs in zip(summed, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_rows_of_a_step_follow_from_its_number() -> None:
    def rows(step: int, seed: int = 3) -> list[str]:
        update = General(make_examples(6), 4, PACKED, seed).at(step, 0, 1)
        return [each.where for b in update.micro_batches for row in b.documents for each in row]

    assert rows(5) == rows(5)
    assert rows(5) != rows(6)
    assert rows(5) != rows(5, seed=4)
    assert sorted(rows(1) + rows(2) + rows(3)) == sorted(2 * [f"made:{n}" for n in range(6)])


def test_the_disagreement_of_two_passes_is_torch_s() -> None:
    one, other = scores(7, 5, 4), scores(7, 5, 5)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    theirs = kl_div(q, p, reduction="sum", log_target=True)
    theirs = theirs + kl_div(p, q, reduction="sum", log_target=True)
    assert disagreement(one, other, 2.0).item() == pytest.approx(theirs.item() / 2, rel=1e-5)
    assert disagreement(one, one, 2.0).item() == 0


def test_smoothing_makes_torch_s_smoothed_loss() -> None:
    found, targets = scores(9, 5, 6), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    plain = cross_entropy(found, targets, reduction="sum")
    theirs = cross_entropy(found, targets, reduction="sum", label_smoothing=0.1)
    assert (plain + smoothing(found, targets, 0.1)).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_scores_are_those_of_the_loss(tiny_llama: Path) -> None:
    model = load(tiny_llama).eval()
    (batch,) = make_update(make_examples(5), PACKED).micro_batches
    found, targets = trained_scores(model, batch)
    assert len(targets) == int((batch.targets >= 0).sum())
    loss = cross_entropy(found, targets, reduction="sum")
    assert loss.item() == pytest.approx(summed_loss(model, batch).item(), rel=1e-6)


def embed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.get_input_embeddings()(ids).detach()
    return found


def test_noise_is_of_the_size_of_the_paper_and_ends(tiny_llama: Path) -> None:
    """Each number within alpha / √(L d), drawn evenly: its root mean square is that over √3."""
    model = load(tiny_llama)
    (long,) = [e for e in make_examples(40, longest=60) if e.length == 59][:1] or [None]
    examples = [long] if long else make_examples(1, longest=60)
    batch = collate([examples], 0)
    plain = embed(model, batch.inputs)
    with noise(model, batch, 5.0):
        added = embed(model, batch.inputs) - plain
        assert torch.equal(
            embed(model, torch.tensor([[7, 8]])), embed(model, torch.tensor([[7, 8]]))
        )
    most = 5 / math.sqrt(examples[0].length * 32)
    assert added.abs().max() <= most * (1 + 1e-5)
    assert added.square().mean().sqrt().item() == pytest.approx(most / math.sqrt(3), rel=0.1)
    assert torch.equal(embed(model, batch.inputs), plain)


def test_texts_that_share_a_row_keep_their_own_length() -> None:
    first, second = make_examples(2, seed=8)
    batch = collate([[first, second], [second]], 0)
    found = lengths_at(batch)
    assert found[0, : first.length].tolist() == first.length * [first.length]
    rest = found[0, first.length :].tolist()
    assert rest == second.length * [second.length]
    assert set(found[1, second.length :].tolist()) == {1}


def test_dropout_in_the_adapter_is_what_r_drop_compares(tiny_llama: Path) -> None:
    model = move(load(tiny_llama, LoraSection(rank=4, dropout=0.3))).train()
    (batch,) = make_update(make_examples(4), PACKED).micro_batches
    torch.manual_seed(0)
    one, other = (trained_scores(model, batch)[0] for _ in range(2))
    assert disagreement(one, other, 1.0) > 1e-4
