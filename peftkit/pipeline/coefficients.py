"""The numbers of a formula, searched on rows with the base loaded once and nothing merged anew."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import RunError
from peftkit.evaluate.retention import metric_of, performance, score_of
from peftkit.merge.search import Measured, search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from peftkit.evaluate.evaluation import Evaluation
    from peftkit.merge.delta import Delta
    from peftkit.merge.search import Found
    from peftkit.pipeline.bench import Bench
    from peftkit.pipeline.watch import Watch

    Mix = Callable[[Mapping[str, float]], Delta]

TIE = 1e-3
"""What a nat of loss counts beside a share of right answers: enough to tell equal shares apart."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is searched for."""

    over: Mapping[str, tuple[float, float]]
    """From where to where the numbers of some terms may go; the others stay."""
    objective: str
    """The set that is made best."""
    direction: Literal["improve", "worsen"] = "improve"
    subject_to: Mapping[str, float] = field(default_factory=dict)
    """By set, the share of the base's performance that must be left."""
    budget: int = 40
    holdout: float = 0.5
    """Share of the rows of these sets that the search does not see."""
    seed: int = 0

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that are looked at."""
        return tuple(dict.fromkeys((self.objective, *self.subject_to)))


@dataclass(frozen=True, slots=True)
class Searched:
    """The numbers that were found, and how."""

    numbers: dict[str, float]
    """Of every term of the formula."""
    facts: dict[str, Any]
    """What `search.json` says."""


def search_numbers(
    bench: Bench,
    terms: Mapping[str, Delta],
    numbers: Mapping[str, float],
    wanted: Wanted,
    watch: Watch,
    *,
    brings: Delta | None = None,
    mix: Mix | None = None,
) -> Searched:
    """The numbers that do best on rows of the bench that it has for searching.

    Args:
        bench: divided for the sets of `wanted`.
        terms: the changes, as they are multiplied.
        numbers: those of the formula, from which the search starts.
        wanted: what is searched for.
        watch: is told of every evaluation.
        brings: whose head stands in the model.
        mix: what a method makes of the terms; without, they are added up, live.

    Raises:
        RunError: no numbers were found that keep the constraint.
    """
    names = tuple(wanted.over)
    with (
        watch.progress(wanted.budget, "searching") as progress,
        _turning(bench, terms, brings, mix) as turn,
    ):
        base, done = _evaluate(bench, wanted), 0

        def measure(place: tuple[float, ...]) -> Measured:
            nonlocal done
            turn({**numbers, **dict(zip(names, place, strict=True))})
            found = _judge(_evaluate(bench, wanted), base, wanted)
            done += 1
            progress(done, **{wanted.objective: found.figures[wanted.objective]})
            return found

        found = search(
            measure,
            list(wanted.over.values()),
            [numbers[name] for name in names],
            budget=wanted.budget,
            seed=wanted.seed,
            largest=wanted.direction == "worsen" and bool(wanted.subject_to),
        )
    _refuse_broken(found, names, wanted)
    best = dict(zip(names, found.best.numbers, strict=True))
    watch.say(f"searched {len(found.trials)} times: " + _said(best))
    facts = _facts(found, base, numbers, wanted)
    return Searched({**numbers, **best}, facts)


@contextmanager
def _turning(
    bench: Bench, terms: Mapping[str, Delta], brings: Delta | None, mix: Mix | None
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that lets the terms act with other numbers; at first none of them does.

    A sum is linear in them and is only turned; of another method the merge is made anew.
    """
    with ExitStack() as stack:
        if mix is None:
            dials = stack.enter_context(bench.acting(terms))
            dials.turn({}, brings)
            yield lambda numbers: dials.turn(numbers, brings)
            return
        now = stack.enter_context(ExitStack())

        def put(merged: Mapping[str, Delta]) -> None:
            now.close()
            now.enter_context(bench.acting(merged)).turn(dict.fromkeys(merged, 1.0), brings)

        put({})
        yield lambda numbers: put({"merged": mix(numbers)})


def _evaluate(bench: Bench, wanted: Wanted) -> dict[str, Evaluation]:
    return {name: bench.measure(bench.named(name).searched, answers=False) for name in wanted.sets}


def _judge(
    found: Mapping[str, Evaluation], base: Mapping[str, Evaluation], wanted: Wanted
) -> Measured:
    """What the search is told of some numbers."""
    figures = {name: score_of(each) for name, each in found.items()}
    aim = found[wanted.objective]
    cost = figures[wanted.objective]
    if metric_of(aim) != "loss":
        cost = TIE * min(aim.rows.per_token, 1 / TIE) - cost
    sign = 1 if wanted.direction == "improve" else -1
    kept = {
        f"{name}, share of the base": performance(
            figures[name], score_of(base[name]), metric_of(base[name])
        )
        for name in wanted.subject_to
    }
    margins = [
        share - least
        for share, least in zip(kept.values(), wanted.subject_to.values(), strict=True)
    ]
    return Measured(sign * cost, min(margins, default=float("inf")), figures | kept)


def _refuse_broken(found: Found, names: tuple[str, ...], wanted: Wanted) -> None:
    if found.best.feasible:
        return
    nearest = _said(dict(zip(names, found.best.numbers, strict=True)))
    asked = ", ".join(f"{name}: {share:g}" for name, share in wanted.subject_to.items())
    raise RunError(
        f"search: no numbers keep `{asked}`; the nearest are {nearest}, which lack "
        f"{-found.best.measured.margin:.3f}",
        hint="let `search.over` reach nearer to 0, where the base itself is, or ask for less",
    )


def _said(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())


def _facts(
    found: Found, base: Mapping[str, Evaluation], start: Mapping[str, float], wanted: Wanted
) -> dict[str, Any]:
    names = tuple(wanted.over)
    return {
        "over": {name: list(bounds) for name, bounds in wanted.over.items()},
        "objective": wanted.objective,
        "metric": metric_of(base[wanted.objective]),
        "direction": wanted.direction,
        "subject_to": dict(wanted.subject_to),
        "budget": wanted.budget,
        "holdout": wanted.holdout,
        "seed": wanted.seed,
        "way": found.way,
        "note": found.note,
        "start": {name: start[name] for name in names},
        "base": {name: score_of(each) for name, each in base.items()},
        "best": dict(zip(names, found.best.numbers, strict=True)),
        "trials": [
            {
                "numbers": dict(zip(names, trial.numbers, strict=True)),
                "figures": dict(trial.measured.figures),
                "kept": trial.feasible,
            }
            for trial in found.trials
        ],
    }
