"""What is a task vector worth? Negated, added, put into an analogy and averaged, three seeds each.

python benchmarks/task_vectors/run.py            # results/
python benchmarks/task_vectors/run.py --smoke    # a few steps of one seed, nothing written
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import peftkit
from peftkit import Delta
from peftkit.merge.combine import combine
from peftkit.merge.methods.catalog import find_method
from peftkit.merge.methods.from_data import greedy_soup
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.search import Measured, search

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

sys.path.insert(0, str(Path(__file__).parent))
from ascent import ascend
from judging import LENGTH, Judge, kept, random_like
from material import read_domains, write_rows

MATERIAL = ROOT.parent / "shared" / "material"
BASE = str(MATERIAL / "stories260k-hf")
SEEDS = (0, 1, 2)
STEPS, EARLY = 100, 40
ASCENTS = (1e-4, 3e-4)
"""Learning rates of gradient ascent."""
DOMAINS = ["stories", "plays", "capital plays", "code", "rules", "abstracts"]
"""Those that something is judged on."""
CONTROL, LEAST = "stories", 0.95
"""What must stay, and the share of the base's performance there that is still good enough."""
RATE = {"lora": 1e-3, "full": 3e-4}
GRID = (0.4, 0.5, 0.6, 0.8, 1.0, 1.2)
NEGATED = (("code", "lora"), ("code", "full"), ("plays", "lora"))
PAIRS = (("rules", "abstracts"), ("code", "plays"))
UNITS = {"loss": float, "perplexity": lambda loss: kept(-loss)}
"""In which the gain of a task is told."""
METHODS = ("tsv", "core-ties")
SOUP_RATES = (3e-4, 1e-3, 3e-3)
RANDOM = 2
"""Random changes whose mean effect stands beside each negation."""


def train(place: Path, domain: str, seed: int, steps: int, **told: Any) -> Delta:
    """What a run of this seed changes of the base."""
    method = told.get("method", "lora")
    rate = told.get("rate", RATE[method])
    recipe = place / f"{domain}.yaml"
    recipe.write_text(
        f"""\
base: {{model: {BASE}}}
adapter: {{method: {method}{", rank: 8, alpha: 16" if method == "lora" else ""}}}
data:
  train: {{source: "{domain}.train.jsonl", format: text}}
  validation: {{source: "{domain}.search.jsonl", format: text}}
  max_length: {LENGTH}
  leakage: remove
train: {{steps: {steps}, batch: {{rows: 8}}, learning_rate: {rate}, threads: 1}}
evaluate: {{every: 1000, rows: 16}}
seed: {seed}
""",
        encoding="utf-8",
    )
    run = peftkit.finetune(recipe, out=place / "runs" / f"{domain}-{method}-{rate}-{steps}-{seed}")
    return Delta.load(run.adapter, BASE)


def negate(judge: Judge, delta: Delta, domain: str, seed: int) -> dict[str, Any]:
    """The largest multiple taken away that keeps the control, and what that does."""
    with judge.turned({"it": delta}) as turn:

        def measure(numbers: tuple[float, ...]) -> Measured:
            turn({"it": -numbers[0]})
            margin = kept(judge.rise(CONTROL, "search")) - LEAST
            return Measured(objective=-numbers[0], margin=margin)

        number = search(measure, [(0.0, 1.0)], [0.0], budget=10, largest=True).best.numbers[0]
        turn({"it": -number})
        target, control = judge.rise(domain), judge.rise(CONTROL)
        curve = []
        for factor in (0.5, 1.5, 2.0, 3.0):
            turn({"it": -factor * number})
            curve.append([factor * number, judge.rise(domain), judge.rise(CONTROL)])
    noises = []
    for draw in range(RANDOM):
        with judge.turned({"noise": random_like(delta, 100 * seed + draw)}) as turn:
            turn({"noise": -number})
            noises.append([judge.rise(domain), judge.rise(CONTROL)])
    noise = [statistics.mean(each) for each in zip(*noises, strict=True)]
    return {
        "number": number,
        "target_rise": target,
        "control_rise": control,
        "control_kept": kept(control),
        "target_kept": kept(target),
        "ratio": target / control,
        "random": {"target_rise": noise[0], "control_rise": noise[1], "share": noise[0] / target},
        "curve": sorted([*curve, [number, target, control]]),
    }


def add(judge: Judge, deltas: dict[str, Delta]) -> dict[str, Any]:
    """Two tasks with one number, and what is left of what each gained alone."""
    singles = {}
    with judge.turned(deltas) as turn:
        for name in deltas:
            turn({name: 1.0})
            singles[name] = {"judge": judge.loss(name), "search": judge.loss(name, "search")}
        curve = []
        for number in GRID:
            turn(dict.fromkeys(deltas, number))
            rise = judge.rise(CONTROL, "search")
            curve.append([number, share_of(judge, singles, "search", float), rise])
        best = max(curve, key=lambda each: each[1])[0]
        turn(dict.fromkeys(deltas, 1.0))
        at_1 = share_of(judge, singles, "judge", float)
        turn(dict.fromkeys(deltas, best))
        figures = {unit: share_of(judge, singles, "judge", UNITS[unit]) for unit in UNITS}
        control = judge.rise(CONTROL)
    one, other = deltas.values()
    return {
        "cosine": one.cosine(other),
        "singles": singles,
        "curve": curve,
        "number": best,
        "interior": GRID[0] < best < 1.0,
        **figures,
        "control_rise": control,
        "at_1": at_1,
        "methods": {name: merged_by(judge, name, deltas, singles) for name in METHODS},
    }


def share_of(judge: Judge, singles: dict[str, dict[str, float]], part: str, unit: Any) -> float:
    """The mean share of what each task gained alone."""
    found = []
    for name, alone in singles.items():
        base, now = judge.base[name, part], judge.loss(name, part)
        found.append((unit(base) - unit(now)) / (unit(base) - unit(alone[part])))
    return statistics.mean(found)


def merged_by(
    judge: Judge, name: str, deltas: dict[str, Delta], singles: dict[str, dict[str, float]]
) -> dict[str, float]:
    """What another method keeps at the best multiple of what it gives."""
    digests = tuple(each.terms[0].digest for each in deltas.values())
    inputs = Inputs((1.0,) * len(deltas), tuple(deltas), digests)
    merged = combine(find_method(name), {}, list(deltas.values()), inputs)
    with judge.turned({"it": merged}) as turn:
        searched = {}
        for number in (0.6, 0.8, 1.0):
            turn({"it": number})
            searched[number] = share_of(judge, singles, "search", float)
        best = max(searched, key=searched.__getitem__)
        turn({"it": best})
        return {"number": best, "loss": share_of(judge, singles, "judge", float)}


def relate(judge: Judge, place: Path, seed: int, steps: int) -> dict[str, Any]:
    """`plays + (capital stories - stories)`: capital plays, of which none was trained on."""
    terms = {n: train(place, n, seed, steps) for n in ("plays", "capital stories", "stories")}
    aim = "capital plays"
    trained = train(place, aim, seed, steps)
    figures: dict[str, Any] = {"base": judge.base[aim, "judge"]}
    with judge.turned({**terms, "trained": trained}) as turn:
        tried = {}
        for number in (0.4, 0.6, 0.8, 1.0):
            turn(analogy(number))
            tried[number] = judge.loss(aim, "search")
        best = min(tried, key=tried.__getitem__)
        turn(analogy(best))
        figures |= {"number": best, "analogy": judge.loss(aim), "tried": list(tried.items())}
        for name in (*terms, "trained"):
            turn({name: 1.0})
            figures[name] = judge.loss(aim)
    alone = min(figures[name] for name in terms)
    figures["share"] = (figures["base"] - figures["analogy"]) / (
        figures["base"] - figures["trained"]
    )
    figures["best_term"] = alone
    return figures


def analogy(number: float) -> dict[str, float]:
    """The formula's numbers, each times one."""
    return {"plays": number, "capital stories": number, "stories": -number}


def stir(judge: Judge, deltas: dict[str, Delta], domain: str) -> dict[str, Any]:
    """The mean of several runs, of all and of those that help, beside each run alone."""
    names = list(deltas)
    with judge.turned(deltas) as turn:
        alone, searched = {}, {}
        for name in names:
            turn({name: 1.0})
            alone[name], searched[name] = judge.loss(domain), judge.loss(domain, "search")

        def score(weights: tuple[float, ...]) -> float:
            turn(dict(zip(names, weights, strict=True)))
            return -judge.loss(domain, "search")

        turn(dict.fromkeys(names, 1 / len(names)))
        uniform = judge.loss(domain)
        weights = greedy_soup(len(names), score).weights
        turn(dict(zip(names, weights, strict=True)))
        greedy = judge.loss(domain)
    pairs = [one.cosine(other) for one, other in combinations(deltas.values(), 2)]
    return {
        "alone": alone,
        "mean": statistics.mean(alone.values()),
        "best": alone[min(searched, key=searched.__getitem__)],
        "uniform": uniform,
        "greedy": greedy,
        "chosen": [name for name, weight in zip(names, weights, strict=True) if weight],
        "cosine": statistics.mean(pairs),
    }


def measure_negation(
    judge: Judge, place: Path, seed: int, steps: int, *, domain: str, method: str
) -> dict[str, Any]:
    """A change taken away, and the base trained up the loss instead."""
    delta = train(place, domain, seed, steps, method=method)
    figures = negate(judge, delta, domain, seed)
    rates = ASCENTS if (domain, method) == NEGATED[0] else ()
    aim = figures["target_rise"]
    ascents = [ascend(judge, domain, aim, seed=seed, rate=rate, steps=steps) for rate in rates]
    return figures | {"ascent": ascents}


def measure_addition(
    judge: Judge, place: Path, seed: int, steps: int, *, pair: tuple[str, str]
) -> list[dict[str, Any]]:
    """A pair of tasks added, after long runs and after short ones."""
    found = []
    for length in (steps, min(EARLY, steps)):
        # Of other seeds, as runs of two people are: those of one seed begin with the same factors.
        deltas = {n: train(place, n, seed + 10 * at, length) for at, n in enumerate(pair)}
        found.append({"pair": pair, "steps": length, **add(judge, deltas)})
    return found


def measure_soups(judge: Judge, place: Path, seed: int, steps: int) -> dict[str, Any]:
    """Runs on plays of three learning rates, and of three seeds."""
    rates = {f"rate {r:g}": train(place, "plays", seed, steps, rate=r) for r in SOUP_RATES}
    seeds = {f"seed {each}": train(place, "plays", each, steps) for each in SEEDS}
    return {"rates": stir(judge, rates, "plays"), "seeds": stir(judge, seeds, "plays")}


JOBS: dict[str, Any] = {
    **{
        f"negation-{at}-{seed}": (partial(measure_negation, domain=domain, method=method), seed)
        for seed in SEEDS
        for at, (domain, method) in enumerate(NEGATED)
    },
    **{
        f"addition-{at}-{seed}": (partial(measure_addition, pair=pair), seed)
        for seed in SEEDS
        for at, pair in enumerate(PAIRS)
    },
    **{f"analogy-{seed}": (relate, seed) for seed in SEEDS},
    "soups": (measure_soups, SEEDS[0]),
}
"""What is measured and with which seed, each in a folder of its own."""


def do(job: str, place: Path, steps: int) -> None:
    """Measure a job, unless its figures are there."""
    if (done := place / f"{job}.json").exists():
        return
    torch.set_num_threads(1)
    measure, seed = JOBS[job]
    (place / job).mkdir(exist_ok=True)
    for domain, documents in read_domains(MATERIAL).items():
        write_rows(domain, documents, place / job)
    started = time.process_time()
    found = measure(Judge(BASE, place / job, DOMAINS), place / job, seed, steps)
    facts = {"figures": found, "cpu_seconds": time.process_time() - started}
    done.write_text(json.dumps(facts), encoding="utf-8")
    print(job, f"{facts['cpu_seconds']:.0f} s", flush=True)


def summarize(found: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds, and the worst seed where a bound is asked for."""

    def mean(values: Any) -> float:
        return statistics.mean(values)

    negation = {}
    for at, (domain, method) in enumerate(NEGATED):
        runs = [found[f"negation-{at}-{seed}"] for seed in SEEDS]
        keys = ("number", "target_rise", "control_rise", "control_kept", "ratio")
        negation[f"{domain}, {method}"] = {
            **{key: mean(run[key] for run in runs) for key in keys},
            "least_ratio": min(run["ratio"] for run in runs),
            "random_share": mean(run["random"]["share"] for run in runs),
            "most_random_share": max(abs(run["random"]["share"]) for run in runs),
        }
    ascent = [
        {
            "rate": runs[0]["rate"],
            **{
                f"{when}_control_kept": [run[when]["control_kept"] for run in runs if when in run]
                for when in ("matched", "end")
            },
        }
        for runs in zip(*(found[f"negation-0-{seed}"]["ascent"] for seed in SEEDS), strict=True)
    ]
    addition = {}
    for at, pair in enumerate(PAIRS):
        for runs in zip(*(found[f"addition-{at}-{seed}"] for seed in SEEDS), strict=True):
            keys = ("number", "cosine", "loss", "perplexity", "control_rise", "at_1")
            addition[f"{' + '.join(pair)}, {runs[0]['steps']} steps"] = {
                **{key: mean(run[key] for run in runs) for key in keys},
                "least_perplexity": min(run["perplexity"] for run in runs),
                "interior": all(run["interior"] for run in runs),
                "methods": {n: mean(run["methods"][n]["loss"] for run in runs) for n in METHODS},
            }
    analogies = [found[f"analogy-{seed}"] for seed in SEEDS]
    terms = ("base", "plays", "capital stories", "stories", "analogy", "trained", "share")
    soup = ("mean", "best", "uniform", "greedy")
    return {
        "negation": negation,
        "ascent": ascent,
        "addition": addition,
        "analogy": {key: mean(each[key] for each in analogies) for key in terms},
        "soup_of_rates": {key: found["soups"]["rates"][key] for key in soup},
        "soup_of_seeds": {key: found["soups"]["seeds"][key] for key in soup},
    }


def main() -> None:
    """Do every job, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="figures of jobs go here and are taken from here")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = told.keep or Path(name)
        steps = 6 if told.smoke else STEPS
        with ProcessPoolExecutor(told.processes, get_context("spawn")) as pool:
            list(pool.map(partial(do, place=place, steps=steps), JOBS))
        jobs = {job: json.loads((place / f"{job}.json").read_text("utf-8")) for job in JOBS}
    found = {job: facts["figures"] for job, facts in jobs.items()}
    measured = {
        "summary": summarize(found),
        "jobs": found,
        "cpu_seconds": {job: facts["cpu_seconds"] for job, facts in jobs.items()},
    }
    if told.smoke:
        print(json.dumps(measured["summary"], indent=2))
    else:
        print(write_result(Path(__file__).parent, measured))


if __name__ == "__main__":
    main()
