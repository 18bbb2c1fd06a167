"""A result as Markdown, at the end of a run and in this folder's README.

python benchmarks/gpu/summary.py [RESULT]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from plan import OURS, TRL, VARLEN

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: written by summary.py -->", "<!-- end of results -->"
COLUMNS = (
    *("real tokens a second (p20–p80)", "share of GEMM", "GPU busy", "launches a step"),
    *("peak, allocated", "reserved", "steps", "equal"),
)
SHARE_BAR, BUSY_BAR, RATIO_BAR, MEMORY_BAR = 0.5, 0.85, 1.15, 0.5
ASKED_OF = ("8B", 8192)
"""Shape and tokens of a micro-batch that figures are asked of."""


def main() -> None:
    """Rewrite the part of the README between the two marks."""
    named = [Path(argument) for argument in sys.argv[1:]]
    path = named[0] if named else max((HERE / "results").glob("*.json"))
    result = json.loads(path.read_text(encoding="utf-8"))
    measured, machine = result["measured"], result["machine"]
    if measured["smoke"]:
        sys.exit("That is the result of a smoke run: its figures mean nothing.")
    versions = ", ".join(f"{name} {each}" for name, each in result["versions"].items())
    lines = [f"From `{path.name}`: {machine['gpu']}; {versions}.", "", *render(measured)]
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    body = "\n".join(lines)
    text = f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.partition(END)[2]}"
    readme.write_text(text, encoding="utf-8")


def render(measured: dict[str, Any]) -> list[str]:
    """Everything that was measured, what was asked first, and what was left out last."""
    probes, tests = measured["probes"], measured["gpu_tests"]
    said = tests.get("left_out") or f"exit code {tests['exit_code']}"
    rates = probes["gemm_per_second"] / 1e12, probes["copy_per_second"] / 1e12
    best = (
        "The process multiplies matrices at {:.0f} TFLOP/s in bfloat16 and copies at {:.2f} TB/s."
    )
    lines = [f"{best.format(*rates)} GPU tests: {said}.", "", *_asked(measured), ""]
    for name, cell in measured["cells"].items():
        gates = measured["gates"].get(cell["shape"], {})
        title = name.partition(":")[0]
        lines += [_row(title, COLUMNS), "|---|" + "--:|" * len(COLUMNS)]
        lines += [_row(arm, _cells(arm, facts, gates)) for arm, facts in cell["arms"].items()]
        lines += ["", *(f"Left out: {arm} ({why})." for arm, why in cell["left_out"].items()), ""]
    return [*lines, *(f"Left out: {what} ({why})." for what, why in measured["left_out"].items())]


def _asked(measured: dict[str, Any]) -> list[str]:
    """The four figures that were asked for, as far as they were measured."""
    share, busy, ratio = (_first(measured, read) for read in (_share, _busy, _ratio))
    alike, faster = (_memory(measured, recompute=recompute) for recompute in (True, False))
    return [
        "Packed, on shape 8B, with 8,192 tokens a micro-batch and without recomputing:",
        "",
        f"- share of the GEMM rate: {share} (asked: {SHARE_BAR:.0%})",
        f"- GPU busy: {busy} (asked: {BUSY_BAR:.0%})",
        f"- speed ÷ {VARLEN}: {ratio} (asked: {RATIO_BAR})",
        f"- peak memory ÷ {TRL}: {alike} with recomputing, {faster} without (asked: {MEMORY_BAR})",
    ]


def _first(measured: dict[str, Any], read: Any) -> str:
    for cell in measured["cells"].values():
        if _is_asked(cell) and not cell["recompute"] and {OURS, VARLEN} <= cell["arms"].keys():
            gates = measured["gates"].get(cell["shape"], {})
            void = any(_verdict(gates.get(arm)) == "void" for arm in (OURS, VARLEN))
            return "void" if void else read(cell)
    return "not measured"


def _share(cell: dict[str, Any]) -> str:
    share = cell["arms"][OURS].get("share_of_gemm")
    return "not measured" if share is None else f"{share:.0%}"


def _busy(cell: dict[str, Any]) -> str:
    activity = cell["arms"][OURS].get("activity")
    return "not measured" if activity is None else f"{activity['busy']:.0%}"


def _ratio(cell: dict[str, Any]) -> str:
    rounds = [cell["arms"][arm].get("rounds") for arm in (OURS, VARLEN)]
    if not all(rounds):
        return "not measured"
    ratios = [one / other for one, other in zip(*rounds, strict=False)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _memory(measured: dict[str, Any], *, recompute: bool) -> str:
    """Ours with or without recomputing against the imitation, which always recomputes."""
    asked = [cell for cell in measured["cells"].values() if _is_asked(cell)]
    ours = [c["arms"].get(OURS) for c in asked if c["recompute"] == recompute]
    theirs = [cell["arms"].get(TRL) for cell in asked]
    peaks = [
        next((arm["memory"]["allocated"] for arm in arms if arm and arm["memory"]), None)
        for arms in (ours, theirs)
    ]
    return f"{peaks[0] / peaks[1]:.2f}" if all(peaks) else "not measured"


def _is_asked(cell: dict[str, Any]) -> bool:
    return (cell["shape"], cell["tokens"]) == ASKED_OF


def _cells(arm: str, facts: dict[str, Any], gates: dict[str, Any]) -> list[str]:
    memory, activity = (facts.get(name) for name in ("memory", "activity"))
    pace, verdict = facts.get("tokens_per_second"), _verdict(gates.get(arm))
    speed = [f"{pace['median']:.0f} ({pace['p20']:.0f}–{pace['p80']:.0f})"] if pace else ["–"]
    speed.append(f"{facts['share_of_gemm']:.0%}" if pace else "–")
    return [
        *(["void", "void"] if verdict == "void" else speed),
        f"{activity['busy']:.0%}" if activity else "–",
        f"{activity['launches_per_step']:.0f}" if activity else "–",
        *(
            f"{memory[kind] / 2**30:.1f} GiB" if memory else "–"
            for kind in ("allocated", "reserved")
        ),
        str(facts.get("timed_steps", 0)),
        verdict,
    ]


def _verdict(gate: Any) -> str:
    """The gate's word: `void` where the arm computes something else."""
    if gate is None:
        return "not gated"
    if isinstance(gate, str):
        return gate
    return "yes" if gate["equal"] else "void"


def _row(first: str, others: Any) -> str:
    return f"| {first} | " + " | ".join(others) + " |"


if __name__ == "__main__":
    main()
