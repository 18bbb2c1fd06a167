"""Attention inside documents is what the formula says, whatever the bundles and blocks."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from peftkit.fast import documents
from peftkit.fast.documents import Rule, arrange, attend

Triple = tuple[Tensor, Tensor, Tensor]
LONG = (1, 300, 17, 64, 65, 520, 16)  # longer than a block, and than what is kept


def draw(
    lengths: Sequence[int],
    *,
    heads: int = 4,
    key_heads: int = 2,
    width: int = 8,
    value_width: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Triple:
    """Queries, keys and values as a model makes them: (1, heads, tokens, width), strided."""
    source = torch.Generator().manual_seed(sum(lengths))
    shapes = ((heads, width), (key_heads, width), (key_heads, value_width or width))
    query, key, value = (
        torch.randn(1, sum(lengths), *shape, generator=source, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for shape in shapes
    )
    return query, key, value


def expected(tensors: Triple, lengths: Sequence[int], rule: Rule) -> Tensor:
    """The formula, a document at a time, every score made and the hidden ones taken out."""
    group = tensors[0].shape[1] // tensors[1].shape[1]
    parts = (each[0].split(list(lengths), 1) for each in tensors)
    made = []
    for query, key, value in zip(*parts, strict=True):
        keys, values = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
        scores = query @ keys.transpose(1, 2) * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        places = torch.arange(query.shape[1])
        back = places[:, None] - places
        seen = (back >= 0) & (back < (rule.window or len(places)))
        made.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ values)
    return torch.cat(made, 1).transpose(0, 1)[None]


def differentiate(attended: Tensor, tensors: Triple) -> list[Tensor]:
    """The output and the gradients that a fixed upstream gradient leads to."""
    upstream = torch.randn(
        attended.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    return [
        attended.detach(),
        *torch.autograd.grad(attended, tensors, upstream.to(attended.dtype)),
    ]


def assert_right(tensors: Triple, lengths: Sequence[int], rule: Rule, limit: float) -> None:
    ours = differentiate(attend(*tensors, lengths, rule), tensors)
    theirs = differentiate(expected(tensors, lengths, rule), tensors)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=limit, atol=limit)


@contextmanager
def limits(*, kept: int, scores: int) -> Iterator[None]:
    """Inside, less is kept for the backward pass and less goes into one product."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "KEPT", kept)
        patch.setattr(documents, "SCORES", scores)
        arrange.cache_clear()
        yield
    arrange.cache_clear()


@given(
    lengths=some.lists(some.integers(1, 200), min_size=1, max_size=6),
    heads=some.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (8, 1)]),
    window=some.sampled_from([None, None, 1, 2, 7, 63, 64, 65, 130]),
    softcap=some.sampled_from([None, None, 0.7]),
    kept=some.sampled_from([0, 256]),
    scores=some.sampled_from([1, 2**20]),
)
@settings(max_examples=40)
def test_it_is_the_formula_forward_and_backward(
    lengths: list[int],
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    kept: int,
    scores: int,
) -> None:
    tensors = draw(lengths, heads=heads[0], key_heads=heads[1], width=4)
    with limits(kept=kept, scores=scores):
        assert_right(tensors, lengths, Rule(0.6, window, softcap), 1e-10)


@pytest.mark.parametrize("window", [None, 100])
def test_long_documents_are_the_formula_too(window: int | None) -> None:
    assert_right(draw(LONG), LONG, Rule(0.35, window), 1e-10)


def test_values_may_be_of_another_width_than_keys() -> None:
    lengths = (3, 70, 1)
    assert_right(draw(lengths, width=6, value_width=10), lengths, Rule(0.4), 1e-10)


def test_float32_is_as_exact_as_float32() -> None:
    assert_right(draw(LONG, dtype=torch.float32), LONG, Rule(0.35), 2e-5)


@pytest.mark.parametrize("lengths", [(5, 130, 64, 290), (1024,)])
def test_bfloat16_is_about_as_exact_as_attention_that_makes_every_weight(
    lengths: tuple[int, ...],
) -> None:
    rule = Rule(0.25)
    exact = draw(lengths, width=16)
    rounded: Triple = draw(lengths, width=16, dtype=torch.bfloat16)
    wanted = differentiate(expected(exact, lengths, rule), exact)
    ours = differentiate(attend(*rounded, lengths, rule), rounded)
    usual = differentiate(eager(rounded, lengths, rule), rounded)
    for one, other, right in zip(ours, usual, wanted, strict=True):
        assert error(one, right) < 1.3 * error(other, right) < 1e-2


def eager(tensors: Triple, lengths: Sequence[int], rule: Rule) -> Tensor:
    """What transformers' eager attention does in the tensors' dtype, document by document."""
    query, key, value = tensors
    group = query.shape[1] // key.shape[1]
    parts = (each.split(list(lengths), 2) for each in (query, key, value))
    made = []
    for q, k, v in zip(*parts, strict=True):
        keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        scores = (q @ keys.transpose(2, 3) * rule.scale).masked_fill(later, -math.inf)
        made.append(scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ values)
    return torch.cat(made, 2).transpose(1, 2)


def error(one: Tensor, right: Tensor) -> float:
    return float((one.double() - right).norm() / right.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_do_not_touch_each_other_not_even_with_nan(dtype: torch.dtype) -> None:
    lengths, rule = (20, 30, 31, 90, 300), Rule(0.35)
    before = draw(lengths, dtype=dtype)
    start, end = sum(lengths[:2]), sum(lengths[:3])
    spoiled = [each.detach().clone() for each in before]
    for each in spoiled:
        each[:, :, start:end] = math.nan
    after: Triple = tuple(each.requires_grad_() for each in spoiled)  # type: ignore[assignment]
    for number, (one, other) in enumerate(
        zip(
            differentiate(attend(*before, lengths, rule), before),
            differentiate(attend(*after, lengths, rule), after),
            strict=True,
        )
    ):
        time = 2 if number else 1
        assert other.narrow(time, start, end - start).isnan().all()
        assert torch.equal(one.narrow(time, 0, start), other.narrow(time, 0, start))
        rest = sum(lengths) - end
        assert torch.equal(one.narrow(time, end, rest), other.narrow(time, end, rest))


def test_the_order_of_documents_changes_nothing() -> None:
    tensors = draw(LONG, dtype=torch.float32)
    order = [5, 0, 3, 6, 1, 4, 2]
    pieces = [each.split(LONG, 2) for each in tensors]
    shuffled: Triple = tuple(torch.cat([part[i] for i in order], 2) for part in pieces)  # type: ignore[assignment]
    rule = Rule(0.35, window=90)
    one = attend(*tensors, LONG, rule).split(LONG, 1)
    other = attend(*shuffled, [LONG[i] for i in order], rule)
    torch.testing.assert_close(torch.cat([one[i] for i in order], 1), other, rtol=0, atol=1e-6)


def test_twice_the_same_is_bit_for_bit_the_same() -> None:
    tensors = draw(LONG, dtype=torch.bfloat16)
    runs = [differentiate(attend(*tensors, LONG, Rule(0.35)), tensors) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize(("length", "weights"), [(128, True), (512, False)])
def test_only_short_documents_keep_their_weights(length: int, *, weights: bool) -> None:
    tensors = draw([length] * (1024 // length), dtype=torch.float32)
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        attend(*tensors, [length] * (1024 // length), Rule(0.35))
    inputs = sum(each.nbytes for each in tensors)
    assert saved > 1.5 * inputs if weights else saved == inputs


def test_a_cached_arrangement_of_an_evaluation_serves_training() -> None:
    arrange.cache_clear()
    tensors = draw([9, 4])
    with torch.inference_mode():
        attend(*tensors, [9, 4], Rule(0.5))
    assert_right(tensors, [9, 4], Rule(0.5), 1e-10)
    assert arrange.cache_info().hits == 1
