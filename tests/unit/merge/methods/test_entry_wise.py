"""Laws of merging entry by entry: order, blocks, kept shares, scaling, negation, and refusals."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peftkit.errors import InputError, RecipeError
from peftkit.merge.methods.catalog import METHODS, find_method
from peftkit.merge.methods.conflict import SignConflict, sign_conflicts, spread_rows, total
from peftkit.merge.methods.entry_wise import merge_blocks, merge_layers
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.methods.steps import Ties, ties
from peftkit.merge.methods.stream import Layer, Stream
from peftkit.merge.methods.thin import Scope

ENTRY_WISE = [name for name, method in METHODS.items() if method.kind == "entry-wise"]
SHAPES = ((5, 7), (1, 1), (11,), (3, 2, 4))
Model = list[list[Tensor]]
"""For each layer what each input changes."""


def model(seed: int, inputs: int = 3, *, coarse: float = 0.0) -> Model:
    """Changes of a few layers; of coarse ones many entries have one size, and some are 0."""
    generator = torch.Generator().manual_seed(seed)
    changes = [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(inputs)]
        for shape in SHAPES
    ]
    return [
        [(each / coarse).round() * coarse if coarse else each for each in layer]
        for layer in changes
    ]


def merge(
    name: str,
    changes: Model,
    told: dict[str, Any] | None = None,
    *,
    weights: Sequence[float] = (),
    order: Sequence[int] = (),
    entries: int = 1 << 20,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Every layer merged, with the inputs given in some order."""
    order = order or range(len(changes[0]))
    weights = weights or weights_of(name, len(order))
    inputs = Inputs(
        tuple(weights[each] for each in order),
        tuple(f"adapter-{each}" for each in order),
        tuple("digest-" + "cab"[each] for each in order),
    )
    layers = [
        Layer.of(f"layer-{place}", [layer[each] for each in order])
        for place, layer in enumerate(changes)
    ]
    method = find_method(name)
    method.check(inputs)
    steps = method.function(method.read(told or {}))
    stream = Stream.of(layers, inputs, entries=entries, dtype=dtype)
    return [whole for _, whole in merge_layers(steps, stream)]


def weights_of(name: str, count: int) -> list[float]:
    """Weights that a method takes, negative where it takes them."""
    if METHODS[name].weights == "none" or count == 1:
        return [1.0] * count
    return [1.0, 0.3, 0.7] if METHODS[name].weights == "positive" else [1.0, 0.3, -0.7]


def assert_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    assert len(one) == len(other) == len(SHAPES)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


seeds = st.integers(0, 10_000)
COARSE = st.sampled_from([0.0, 0.5])
orders = st.permutations([0, 1, 2])


@pytest.mark.parametrize("name", ENTRY_WISE)
@given(seeds, orders, st.sampled_from([torch.float32, torch.float64]), COARSE)
@settings(max_examples=8)
def test_the_order_of_inputs_changes_no_bit(
    name: str, seed: int, order: list[int], dtype: torch.dtype, coarse: float
) -> None:
    changes = model(seed, coarse=coarse)
    assert_same(merge(name, changes, dtype=dtype), merge(name, changes, order=order, dtype=dtype))


@pytest.mark.parametrize("name", ENTRY_WISE)
@given(seeds, st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]), COARSE)
@settings(max_examples=8)
def test_the_size_of_blocks_changes_no_bit(
    name: str, seed: int, entries: int, dtype: torch.dtype, coarse: float
) -> None:
    changes = model(seed, coarse=coarse)
    whole = merge(name, changes, dtype=dtype)
    assert_same(whole, merge(name, changes, entries=entries, dtype=dtype))


@pytest.mark.parametrize("name", ENTRY_WISE)
@given(seeds, st.sampled_from([2.0, 0.25, 8.0]))
@settings(max_examples=5)
def test_scaled_changes_give_the_scaled_merge(name: str, seed: int, factor: float) -> None:
    changes = model(seed, coarse=0.5)
    larger = [[change * factor for change in layer] for layer in changes]
    assert_same([each * factor for each in merge(name, changes)], merge(name, larger))


NEGATABLE = [
    name for name in ENTRY_WISE if name not in ("ties@mergekit", "ties@peft", "sce")
]  # in those a tie goes to plus


@pytest.mark.parametrize("name", NEGATABLE)
@given(seeds)
@settings(max_examples=5)
def test_negated_changes_give_the_negated_merge(name: str, seed: int) -> None:
    changes = model(seed, coarse=0.5)
    negated = [[-change for change in layer] for layer in changes]
    assert_same([-each + 0.0 for each in merge(name, changes)], merge(name, negated))


@pytest.mark.parametrize("name", [name for name in NEGATABLE if name != "sum"])
def test_scaling_multiplies_the_merge(name: str) -> None:
    changes = model(1)
    scaled = merge(name, changes, {"lambda": -0.5})
    assert_same([each * -0.5 for each in merge(name, changes)], scaled)


@pytest.mark.parametrize("name", [name for name in ENTRY_WISE if METHODS[name].least == 1])
def test_one_input_of_which_everything_is_kept_is_the_merge(name: str) -> None:
    changes = model(2, 1)
    told = {"keep": 1.0, "window": 0.0, "top": 0.0}
    known = {key: told[key] for key in told if hasattr(METHODS[name].read({}), key)}
    flat = [
        layer[0].reshape(each.shape)
        for layer, each in zip(changes, merge(name, changes, known), strict=True)
    ]
    assert_same(merge(name, changes, known), flat)


def test_a_weighted_sum_is_the_sum() -> None:
    changes, weights = model(3), [0.5, -2.0, 3.0]
    for layer, mine in zip(changes, merge("sum", changes, weights=weights), strict=True):
        oracle = sum(weight * change for weight, change in zip(weights, layer, strict=True))
        torch.testing.assert_close(mine, oracle.reshape(mine.shape))  # type: ignore[union-attr]


def test_a_normalized_sum_is_the_mean() -> None:
    changes = model(3)
    for layer, mine in zip(
        changes, merge("sum", changes, {"normalize": True}, weights=[1, 2, 1]), strict=True
    ):
        oracle = (layer[0] + 2 * layer[1] + layer[2]) / 4
        torch.testing.assert_close(mine, oracle.reshape(mine.shape))


# Kept shares


@given(
    st.integers(1, 60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["model", "tensor", "row"]),
    COARSE,
)
@settings(max_examples=80)
def test_the_kept_share_is_right_to_one_entry_at_every_size(
    size: int, keep: float, top: float, scope: Scope, coarse: float
) -> None:
    change = torch.randn(1, size, generator=torch.Generator().manual_seed(size))
    change = change.sign() if coarse else change
    layers = [Layer.of("layer", [change])]
    for name, told in (("magnitude", {}), ("breadcrumbs", {"top": top})):
        method = find_method(name)
        steps = method.function(method.read({"keep": keep, "scope": scope, **told}))
        ((_, whole),) = merge_layers(steps, Stream.of(layers, one_input(), entries=7))
        share = int((whole != 0).sum()) / size
        assert abs(share - keep) <= 1 / size
        assert torch.equal(whole[whole != 0], change[whole != 0])


def one_input() -> Inputs:
    return Inputs((1.0,), ("a",), ("a",))


def test_the_share_of_a_model_is_counted_over_all_layers() -> None:
    small, large = torch.arange(1.0, 11.0)[None] / 100, torch.arange(1.0, 11.0)[None]
    layers = [Layer.of("small", [small]), Layer.of("large", [large])]
    steps = find_method("magnitude").function(
        find_method("magnitude").read({"keep": 0.4, "scope": "model"})
    )
    one, other = (
        whole for _, whole in merge_layers(steps, Stream.of(layers, one_input(), entries=3))
    )
    assert not one.any()
    assert torch.equal(other, large * (large > 2))


def test_breadcrumbs_drop_outliers_and_noise() -> None:
    change = torch.tensor([[0.1, -9.0, 2.0, -3.0, 0.2, 4.0, 8.0, -1.0, 0.3, 0.4]])
    kept = merge("breadcrumbs", [[change]], {"keep": 0.3, "top": 0.2}, dtype=torch.float32)
    assert kept[0].tolist() == [[0, 0, 2.0, -3.0, 0, 4.0, 0, 0, 0, 0]]


# TIES


def test_ties_as_in_the_paper_by_a_plain_reference() -> None:
    changes, weights = model(4, coarse=0.5), [1.0, 1.0, 1.0]
    flat = torch.stack(
        [torch.cat([layer[each].flatten() for layer in changes]) for each in range(3)]
    )
    kept = int(0.3 * flat.shape[1])
    trimmed = torch.zeros_like(flat)
    for row, values in zip(trimmed, flat, strict=True):
        places = sorted(range(len(values)), key=lambda place: -abs(values[place].item()))[:kept]
        row[places] = values[places]
    signs = trimmed.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    agreeing = trimmed * (trimmed.sign() == signs)
    oracle = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    mine = merge("ties@paper", changes, {"keep": 0.3}, weights=weights, entries=5)
    assert float(oracle.abs().sum()) > 0
    torch.testing.assert_close(torch.cat([each.flatten() for each in mine]), oracle)


@pytest.mark.parametrize(
    ("elect", "combine", "expected"),
    [  # changes 3, -2, -2 with weights 1, 1, 2
        ({}, "mean", -3.0),  # (-2 - 4) / 2
        ({}, "sum", -6.0),
        ({}, "weighted_mean", -2.0),  # -6 / 3
        ({"weights": "after"}, "mean", -3.0),  # -1 of mass without weights
        ({"by": "count"}, "sum", -6.0),
    ],
)
def test_what_ties_can_be_told(elect: dict[str, str], combine: str, expected: float) -> None:
    changes = [[torch.tensor([[3.0]]), torch.tensor([[-2.0]]), torch.tensor([[-2.0]])]]
    told = {"keep": 1.0, "elect": elect, "combine": combine}
    (whole,) = merge("ties", changes, told, weights=[1.0, 1.0, 2.0])
    assert whole.item() == expected


@pytest.mark.parametrize(("weights", "expected"), [("before", -2.0), ("after", 0.75)])
def test_weights_vote_or_do_not(weights: str, expected: float) -> None:
    changes = [[torch.tensor([[3.0]]), torch.tensor([[-2.0]])]]
    told = {"keep": 1.0, "elect": {"weights": weights}}
    (whole,) = merge("ties", changes, told, weights=[0.25, 1.0])
    assert whole.item() == expected


@pytest.mark.parametrize(("tie", "expected"), [("plus", [1.0, -5.0]), ("majority", [-1.0, -5.0])])
def test_a_tie_goes_where_it_was_told(tie: str, expected: list[float]) -> None:
    changes = [[torch.tensor([[1.0, -5.0]]), torch.tensor([[-1.0, -5.0]])]]
    told = {"keep": 1.0, "elect": {"tie": tie}}
    (whole,) = merge("ties", changes, told, weights=[1.0, 1.0])
    assert whole.tolist() == [expected]


def test_a_negative_weight_subtracts_in_ties() -> None:
    changes = [[torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]])]]
    (whole,) = merge("ties", changes, {"keep": 1.0}, weights=[1.0, -1.0])
    assert whole.tolist() == [[3.0, -2.0]]
    with pytest.raises(RecipeError, match="would not subtract"):
        merge("ties", changes, {"combine": "weighted_mean"}, weights=[1.0, -1.0])


# Chance


@pytest.mark.parametrize("name", ["dare", "della-linear"])
def test_dropping_is_right_on_average(name: str) -> None:
    change = torch.tensor([[4.0, -1.0, 2.0, 0.5]])
    tries = 600
    total_of = torch.zeros_like(change)
    for seed in range(tries):
        told = {"keep": 0.5, "seed": seed}
        (whole,) = merge(name, [[change]], told, dtype=torch.float32)
        total_of += whole
    deviation = change.abs() * math.sqrt(1.5 / tries)  # of a mean, with chances of 0.4 and more
    assert bool(((total_of / tries - change).abs() < 4 * deviation).all())


def test_della_keeps_large_entries_more_often() -> None:
    change = torch.arange(1.0, 101.0)[None]
    small = large = 0
    for seed in range(40):
        told = {"keep": 0.5, "window": 0.8, "seed": seed}
        (whole,) = merge("della-linear", [[change]], told, dtype=torch.float32)
        small, large = (
            small + int((whole[0, :50] != 0).sum()),
            large + int((whole[0, 50:] != 0).sum()),
        )
    assert large > 1.5 * small


# Sign conflicts


def test_sign_conflicts_count_contested_entries_and_what_cancels() -> None:
    layers = [
        Layer.of(
            "one", [torch.tensor([[1.0, -2.0, 0.0, 3.0]]), torch.tensor([[-1.0, -2.0, 5.0, 1.0]])]
        ),
        Layer.of("two", [torch.zeros(2, 2), torch.zeros(2, 2)]),
    ]
    stream = Stream.of(layers, Inputs((1.0, 1.0), ("a", "b"), ("a", "b")), entries=1)
    found = sign_conflicts(stream)
    assert found["one"] == SignConflict(4, 3, 1, 15.0, 13.0)
    assert found["one"].share == 1 / 3
    assert found["one"].canceled == pytest.approx(2 / 15)
    assert (found["two"].share, found["two"].canceled) == (0.0, 0.0)
    assert total(found.values()) == SignConflict(8, 3, 1, 15.0, 13.0)


def test_some_rows_say_what_all_rows_say() -> None:
    """Of 200 rows, 67 tell opposite signs within a hundredth, and every row is asked for by few."""
    generator = torch.Generator().manual_seed(3)

    def change(rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (
                torch.randn(rows, 4, generator=generator, dtype=torch.float64),
                torch.randn(4, 300, generator=generator, dtype=torch.float64),
            )
            for _ in range(2)
        ]

    changes = {"a": change(200), "b": change(100)}
    inputs = Inputs((1.0, 1.0), ("x", "y"), ("x", "y"))
    every = spread_rows(changes)
    assert [layer.rows for layer in every] == [200, 100]
    some = spread_rows(changes, most=200 * 300)
    assert [layer.rows for layer in some] == [100, 50]
    fewer = spread_rows(changes, most=100 * 300)
    assert [layer.rows for layer in fewer] == [67, 34]
    assert torch.equal(fewer[0].read[0](1, 2), changes["a"][0][0][3:4] @ changes["a"][0][1])
    whole = total(sign_conflicts(Stream.of(every, inputs)).values())
    for layers in (some, fewer):
        found = total(sign_conflicts(Stream.of(layers, inputs)).values())
        assert found.share == pytest.approx(whole.share, abs=0.01)
        assert found.canceled == pytest.approx(whole.canceled, abs=0.01)


def test_a_negative_weight_turns_agreement_into_conflict() -> None:
    layers = [Layer.of("layer", [torch.ones(2, 3), torch.ones(2, 3)])]
    inputs = Inputs((1.0, -1.0), ("a", "b"), ("a", "b"))
    (found,) = sign_conflicts(Stream.of(layers, inputs)).values()
    assert (found.share, found.canceled) == (1.0, 1.0)


# Refusals


@pytest.mark.parametrize("name", ENTRY_WISE)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_by_every_method(name: str, bad: float) -> None:
    changes = model(5)
    changes[0][1][3, 2] = bad
    with pytest.raises(InputError, match="`layer-0` of `adapter-1` holds NaN or infinity"):
        merge(name, changes, entries=4)


def test_changes_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\) in one adapter and \(3, 2\)"):
        Layer.of("layer", [torch.ones(2, 3), torch.ones(3, 2)])


def test_a_layer_must_have_a_change_for_each_input_and_a_name_of_its_own() -> None:
    layer = Layer.of("layer", [torch.ones(2, 3), torch.ones(2, 3)])
    with pytest.raises(InputError, match="2 given for 1 adapters"):
        Stream.of([layer], one_input())
    single = Layer.of("layer", [torch.ones(2, 3)])
    with pytest.raises(InputError, match="`layer` is there twice"):
        Stream.of([single, single], one_input())


def test_a_reader_that_gives_other_rows_is_refused() -> None:
    layer = Layer("layer", 4, 3, (lambda start, stop: torch.ones(stop - start, 2),))
    with pytest.raises(InputError, match=r"got shape \(4, 2\), expected \(4, 3\)"):
        list(
            merge_blocks(
                find_method("sum").function(find_method("sum").read({})),
                Stream.of([layer], one_input()),
            )
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, -1.0, 1.0], "is negative"), ([0.0, 0.0, 0.0], "sum to 0")],
)
def test_normalizing_refuses_what_it_would_turn_into_something_else(
    weights: list[float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        merge("sum", model(6), {"normalize": True}, weights=weights)


def test_factors_become_dense_where_they_are_read() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randn(9, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, 4, generator=generator, dtype=torch.float64),
        )
        for rank in (1, 3)
    ]
    inputs = Inputs((1.0, -0.5), ("a", "b"), ("a", "b"))
    made = []
    for layer in (
        Layer.of_factors("layer", pairs),
        Layer.of("layer", [up @ down for up, down in pairs]),
    ):
        stream = Stream.of([layer], inputs, entries=12, dtype=torch.float64)
        ((_, whole),) = merge_layers(ties(Ties(keep=0.4)), stream)
        made.append(whole)
    torch.testing.assert_close(made[0], made[1])
    other = [(up, down[:, :3]) for up, down in pairs[1:]]
    with pytest.raises(InputError, match=r"got shape \(9, 3\), expected \(9, 4\)"):
        list(
            merge_layers(
                ties(Ties()), Stream.of([Layer.of_factors("l", [*pairs[:1], *other])], inputs)
            )
        )


def test_half_precision_is_merged_in_full() -> None:
    change = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    (whole,) = merge("sum", [[change, change]], weights=[1.0, 2**-9], dtype=torch.float32)
    assert whole.dtype == torch.float32
    assert whole.tolist() == [[1 + 2**-9, 2 + 2**-8]]


def test_a_tensor_without_entries_stays_empty() -> None:
    for name in ENTRY_WISE:
        count = METHODS[name].least
        whole = merge(name, [[torch.ones(0, 4)] * count], weights=[1.0] * count)
        assert whole[0].shape == (0, 4)
