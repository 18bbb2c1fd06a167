"""Put the newest result of each shape and share of labels, as Markdown, into this README.

python benchmarks/training/table.py [RESULT …]
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: written by table.py -->", "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One arm's speed in another's, and the least that was asked for on shape M."""

    arm: str
    other: str
    bars: dict[str, float]
    """By label density."""


FIGURES = (
    Figure("peftkit", "trl default", {"1": 8.0}),
    Figure("peftkit", "trl tuned", {"1": 3.0}),
    Figure("peftkit", "plain bfloat16 packed", {"1": 2.2}),
    Figure("peftkit", "peftkit with a dense mask", {"1": 1.6}),
    Figure("peftkit", "peftkit with all logits", {}),
    Figure("peftkit", "peftkit without packing", {}),
    Figure("peftkit", "peftkit with peft's LoRA", {}),
    Figure("peftkit", "peftkit with the family's norms", {}),
    Figure("peftkit", "peftkit with plain AdamW", {}),
    Figure("peftkit", "peftkit in float32", {}),
    Figure("peftkit compiled", "peftkit", {}),
    Figure("peftkit on the upper half", "peftkit", {"1": 1.25, "0.25": 1.3}),
    Figure("peftkit on the upper half, cached", "peftkit", {"1": 1.6, "0.25": 1.75}),
)
HEAD_BARS = {"0.25": 15.0}
KEPT_BAR = 0.5
GEMM_BARS = {"peftkit": 0.55, "peftkit in float32": 0.85}


def main() -> None:
    """Rewrite the part of the README between the two marks."""
    named = [Path(argument) for argument in sys.argv[1:]]
    paths = named or sorted((HERE / "results").glob("*.json"), key=_age)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    newest = {
        (shape, density): path
        for path in paths
        for shape, found in _read(path)["measured"]["shapes"].items()
        for density in found["densities"]
    }
    shown: dict[tuple[str, Path], list[str]] = {}
    for (shape, density), path in sorted(newest.items(), key=lambda item: _order(*item[0])):
        shown.setdefault((shape, path), []).append(density)
    text = "\n".join(render(shape, path, kept) for (shape, path), kept in shown.items())
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def render(shape: str, path: Path, densities: list[str]) -> str:
    """What one result says of a shape with these shares of labels, as Markdown."""
    result = _read(path)
    measured = result["measured"]
    versions = result["versions"] | ({"trl": measured["trl"]} if "trl" in measured else {})
    named = ("torch", "transformers", "peft", "trl")
    found, asked = dict(measured["shapes"][shape]), shape == "M"
    found["densities"] = {density: found["densities"][density] for density in densities}
    labels = " and ".join(_percent(density) for density in densities)
    lines = [
        f"### Shape {shape}, {labels} of the labels",
        "",
        f"From `{path.name}`: {result['machine']['cpu']}, one thread, "
        + ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
        + f"; {measured['settings']['docs']} documents an epoch, "
        + f"{measured['settings']['rounds']} warm epochs an arm. "
        + f"`base.dtype: auto` means {': '.join(measured['dtype_of_a_run'])}.",
        *(f"Left out: {arm} ({why})." for arm, why in measured["left_out"].items()),
        "",
        *(*_speeds(found), "", *_costs(found, asked), "", *_ratios(found, asked), ""),
        *(*_heads(found), ""),
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _speeds(shape: dict[str, Any]) -> list[str]:
    densities = shape["densities"]
    lines = _head("real tokens a CPU second, warm", [f"{_percent(d)} labels" for d in densities])
    for arm in next(iter(densities.values()))["arms"]:
        cells = [_speed(densities[density]["arms"][arm]) for density in densities]
        lines.append(_row(arm, cells))
    return lines


def _costs(shape: dict[str, Any], asked: bool) -> list[str]:  # noqa: FBT001 - of this file alone
    """What only depends little on the labels, at the first density."""
    density, found = next(iter(shape["densities"].items()))
    names = ["share of GEMM rate", "kept a token", "kept at once", "first epoch", "loss error"]
    lines = _head(f"at {_percent(density)} labels", [*names, "gradient cosine", "learnt"])
    for arm, facts in found["arms"].items():
        equality, bar = facts["equality"], GEMM_BARS.get(arm) if asked else None
        cells = [
            f"{facts['share_of_gemm']:.0%}" + (f" (asked: {bar:.0%})" if bar else ""),
            f"{facts['kept_bytes_per_token'] / 2**10:.0f} KiB",
            f"{facts['kept_bytes_peak'] / 2**20:.0f} MiB",
            f"{facts['tokens_per_second_cold']:.0f}",
            f"{equality['loss_error']:.0e}",
            f"{equality['cosine']:.5f}",
            "–" if facts["learnt"] is None else f"{facts['learnt']:.1%}",
        ]
        lines.append(_row(arm, cells))
    rates = " and ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in found["gemm_per_second"].items()
    )
    return [*lines, "", f"The same process multiplies matrices at {rates}."]


def _ratios(shape: dict[str, Any], asked: bool) -> list[str]:  # noqa: FBT001 - of this file alone
    densities = shape["densities"]
    lines = _head("ratio of speeds", [f"{_percent(d)} labels" for d in densities])
    for figure in FIGURES:
        cells = [
            _ratio(densities[density]["arms"], figure, figure.bars.get(density) if asked else None)
            for density in densities
        ]
        if any(cells):
            lines.append(_row(f"{figure.arm} ÷ {figure.other}", cells))
    arms = next(iter(densities.values()))["arms"]
    if {"peftkit", "plain bfloat16 packed"} <= arms.keys():
        kept = [arms[arm]["kept_bytes_per_token"] for arm in ("peftkit", "plain bfloat16 packed")]
        lines += [
            "",
            f"Kept for backward, peftkit ÷ plain bfloat16 packed: {kept[0] / kept[1]:.2f}",
        ]
        lines[-1] += f" (asked: at most {KEPT_BAR})."
    return lines


def _heads(shape: dict[str, Any]) -> list[str]:
    heads = shape["head"]
    lines = _head("the head alone, tokens a CPU second", [f"{_percent(d)} labels" for d in heads])
    for way in next(iter(heads.values())):
        lines.append(_row(way, [_speed(found[way]) for found in heads.values()]))
    if all("trl" in found for found in heads.values()):
        cells = [_ratio(heads[d], Figure("peftkit", "trl", {}), HEAD_BARS.get(d)) for d in heads]
        lines.append(_row("peftkit ÷ trl", cells))
    return lines


def _speed(facts: dict[str, Any]) -> str:
    if not facts["equal"]:
        return "void"
    pace = facts["tokens_per_second"]
    return f"{pace['median']:.0f} ({pace['low']:.0f}–{pace['high']:.0f})"


def _ratio(arms: dict[str, Any], figure: Figure, bar: float | None) -> str:
    """Median of the ratios in the same round, and their range."""
    if figure.arm not in arms or figure.other not in arms:
        return ""
    if not (arms[figure.arm]["equal"] and arms[figure.other]["equal"]):
        return "void"
    paces = [arms[name]["tokens_per_second"]["rounds"] for name in (figure.arm, figure.other)]
    ratios = [one / other for one, other in zip(*paces, strict=True)]
    text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return text + (f", asked: {bar:g}" if bar else "")


def _head(first: str, others: list[str]) -> list[str]:
    return [_row(first, others), "|---|" + "--:|" * len(others)]


def _row(first: str, others: list[str]) -> str:
    return f"| {first} | " + " | ".join(others) + " |"


def _percent(density: str) -> str:
    return f"{float(density):.0%}"


def _order(shape: str, density: str) -> tuple[str, float]:
    return shape, -float(density)


def _age(path: Path) -> tuple[str, float]:
    return path.name[:10], path.stat().st_mtime


if __name__ == "__main__":
    main()
