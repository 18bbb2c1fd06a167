"""What a merge says on a terminal: its terms, how they stand to each other, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator


def show_explained(facts: dict[str, Any], *, as_json: bool) -> None:
    """The formula with its numbers, by layer where they differ."""
    if as_json:
        output.show_json({key: facts[key] for key in ("formula", "method", "settings", "by_layer")})
        return
    told = ", ".join(f"{key} {value}" for key, value in facts["settings"].items())
    output.show(_formula(facts) + (f" ({told})" if told else "") + "\n")
    output.table(
        ("layers", "what is added", "such as"),
        [(each["layers"], each["formula"], each["such_as"]) for each in facts["by_layer"]],
    )


def show_merge(facts: dict[str, Any]) -> None:
    """What it is made of, and what it costs."""
    output.show(f"{_formula(facts)}\n")
    if "terms" in facts:
        _show_terms(facts)
        for line in _figures(facts):
            output.show(line)
    if "lost" in facts:
        output.show(f"lost     {facts['lost']:.3g} of the change, by rounding")
    output.show(f"result   {facts['out'] or 'not written (--dry-run)'}")
    if "evaluation" in facts:
        _show_judged(facts)


def _show_judged(facts: dict[str, Any]) -> None:
    """Every model on every set, what was found, and where to read on."""
    sets = facts["evaluation"]["sets"]
    models = list(dict.fromkeys(name for each in sets for name in each["models"]))
    output.show("")
    output.table(
        ("set", "rows", "figure", *models, "gain kept"),
        [
            (
                each["name"],
                each["rows"],
                each["metric"].replace("_", " "),
                *(each["models"].get(name) for name in models),
                each["retained"] and f"{100 * each['retained']['share']:.0f} %",
            )
            for each in sets
        ],
    )
    output.show("")
    for finding in facts["findings"]:
        if finding["severity"] != "ok":
            output.show(f"{finding['severity']:8} {finding['id']}: {finding['sentence']}")
    output.show(f"{facts['evaluation']['verdict']['sentence']}")
    output.show(f"report   {facts['report']}")


def _formula(facts: dict[str, Any]) -> str:
    by = "" if facts["method"] == "sum" else f" by {facts['method']}"
    return f"merged = {facts['formula']}{by}"


def _show_terms(facts: dict[str, Any]) -> None:
    output.table(
        ("adapter", "times", "norm", "modules", "rank", "travels along"),
        [_row(term) for term in [*facts["terms"], facts["merged"]]],
    )
    if facts["pairs"]:
        output.show("")
        output.table(
            ("pair", "cosine", "overlap", "opposite signs", "modules of both"),
            [
                (
                    " and ".join(pair["pair"]),
                    *(pair[key] for key in ("cosine", "overlap", "sign_conflict")),
                    pair["shared_modules"],
                )
                for pair in facts["pairs"]
            ],
        )
    if facts["error_by_rank"] and facts["out"] is None:
        output.show("")
        output.table(
            ("cut to rank", "error"),
            [(each["rank"], each["error"]) for each in facts["error_by_rank"]],
        )
    output.show("")


def _figures(facts: dict[str, Any]) -> Iterator[str]:
    if facts["pairs"] and facts["canceled"] is not None:
        yield f"canceled {facts['canceled']:.3g} of all that the terms change"
    if facts["pairs"] and facts["norm_ratio"] is not None:
        yield f"length   {facts['norm_ratio']:.3g} of what terms at right angles would have"
    worst = facts["worst_layer"]
    yield f"error    {facts['error']:.3g} of the change" + (
        f", most in {worst['name']} ({worst['error']:.3g})" if facts["error"] else ": exact"
    )
    if len(facts["by_layer"]) > 1:
        yield f"scale    {len(facts['by_layer'])} groups of layers (--explain tells them)"
    for gone in facts["left_out"]:
        yield f"left out {len(gone['parts'])} of `{gone['term']}`, such as `{gone['parts'][0]}`"
    for head in facts["heads"]:
        owners = " and ".join(f"`{name}`" for name in head["of"])
        yield f"head     `{head['name']}` of {owners}: {_fate(head)}"
    for name in facts["trained_above"]:
        yield f"note     a term was trained above `{name}`, and means little without it"
    disk = "" if facts["disk"] is None else f"{output.size(facts['disk'])} on disk, "
    yield f"takes    {disk}{output.size(facts['memory'])} of memory"
    if facts["refused"]:
        yield f"refused  {facts['refused']}"


def _fate(head: dict[str, Any]) -> str:
    if not head["stays"]:
        return "left out"
    return "travels along" if len(head["of"]) == 1 else "one for all"


def _row(term: dict[str, Any]) -> tuple[Any, ...]:
    ranks = term["ranks"]
    shown = None if ranks is None else "-".join(map(str, dict.fromkeys(ranks)))
    along = len(term["travels_along"]) or None
    return term["name"], term["weight"], term["norm"], term["modules"], shown, along
