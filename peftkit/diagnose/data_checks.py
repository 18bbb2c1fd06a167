"""The checks of the rows themselves, which can be told before anything is trained.

Each reads `data.json`; what an older run did not write down is not judged. Every threshold stands
here, with its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

IMBALANCE = 9
"""Rows of the largest class for one of the smallest; the KEEL collection calls more than 9 high."""
NOISE = 0.05
"""Share of rows surely labeled otherwise than their features say; twice as many are a warning.

Measured with MiniLM on 750 and 1,500 rows of TREC, SST-2 and SMS (`benchmarks/label_noise`): 0.6 to
8.1 % as published, 2.1 to 10.2 % with one label in ten flipped. So the share alone proves little,
and the rows have to be read.
"""
FEWEST_CHECKED = 500
"""Rows below which so much is only noted: the fewer rows, the more a probe is sure of wrongly."""
SKILL = 0.3
"""How far from always the largest class to always right a probe must come to be believed."""
OTHER_LANGUAGE = 0.1
"""Share of held-out rows in languages that training rows hardly have: one row in ten decides."""
HARDLY = 0.01
"""Share of the training rows below which a language is hardly there."""
FEWEST_TOLD = 20
"""Rows of known language below which shares say nothing."""
LOW_QUALITY = 0.05
"""Share of the rows that the filters would leave out with their own limits: one in twenty."""
UNKNOWN = 0.01
"""Share of tokens that stand for what the tokenizer does not know: one in most rows of 100."""
COARSE = 0.7
"""Bytes a token, over those of the reference: English of any kind measured 0.7 to 1.1 with four
tokenizers (chats and law lowest), Python 0.5 to 0.7, formulas 0.3 to 0.5."""
LOST = 0.05
"""Share of the rows that lose capitals, accents or emoji: one in twenty."""
WRITTEN = ("causal-lm", "seq2seq", "token-classification")
"""Tasks that need capitals: those that write them, and names are told by them."""


def check_data(data: Mapping[str, Any], task: str) -> list[Finding]:
    """Every finding about the rows."""
    found = [
        check_balance(data),
        check_missing_classes(data),
        check_label_noise(data),
        check_languages(data),
        check_quality(data),
        *check_preprocessing(data, task),
    ]
    return [finding for finding in found if finding is not None]


def check_balance(data: Mapping[str, Any]) -> Finding | None:
    """Whether some classes have many more training rows than others."""
    balance = data.get("balance")
    if not balance:
        return None
    counts = balance["train"]["counts"]
    ratio = balance["ratio"]
    if ratio is None:
        absent = balance["train"]["lacking"]
        return Finding(
            "class-imbalance",
            "warning",
            float(len(absent)),
            IMBALANCE,
            f"no training row is of {_named(absent)}: the model cannot learn to say so",
            "add rows, or take the name out of `base.labels`",
        )
    ranked = sorted(counts, key=lambda label: (counts[label], label))
    small, large = ranked[0], ranked[-1]
    sentence = (
        f"the largest class has {ratio:.1f} times the {balance['of']} of the smallest "
        f"({counts[large]:,} `{large}`, {counts[small]:,} `{small}`)"
    )
    if ratio <= IMBALANCE:
        return Finding("class-imbalance", "ok", ratio, IMBALANCE, sentence)
    return Finding(
        "class-imbalance",
        "warning",
        ratio,
        IMBALANCE,
        f"{sentence}: accuracy can be high without the small classes",
        "judge by balanced accuracy or macro F1, and add rows of the small classes",
    )


def check_missing_classes(data: Mapping[str, Any]) -> Finding | None:
    """Whether a set to judge by lacks a class, which then goes unmeasured."""
    balance = data.get("balance")
    if not balance:
        return None
    lacking = {
        name: balance[name]["lacking"] for name in ("validation", "test") if balance.get(name)
    }
    worst = max(lacking, key=lambda name: len(lacking[name]), default="")
    figure = float(len(lacking.get(worst, ())))
    if not figure:
        return Finding("missing-classes", "ok", 0.0, 0.0, "every class is in every set")
    return Finding(
        "missing-classes",
        "note",
        figure,
        0.0,
        f"the {worst} rows have none of {_named(lacking[worst])}: how well that is told goes "
        "unmeasured",
        "hold more rows out, or name rows that have every class",
    )


def check_label_noise(data: Mapping[str, Any]) -> Finding | None:
    """Whether frozen features say that labels are wrong."""
    noise = data.get("label_noise")
    if not noise or not noise["rows"]:
        return None
    share = noise["sure"] / noise["rows"]
    skill = (noise["agreement"] - noise["majority"]) / max(1 - noise["majority"], 1e-9)
    if skill < SKILL:
        return Finding(
            "label-noise",
            "note",
            share,
            NOISE,
            f"labels could not be checked: a probe on the base's features is right for "
            f"{100 * noise['agreement']:.0f} % of {noise['rows']:,} rows, and always the largest "
            f"class for {100 * noise['majority']:.0f} %",
            "read some rows of each class yourself: either the labels are noisy, or the base "
            "cannot see what they are about",
        )
    sentence = (
        f"{noise['sure']:,} of {noise['rows']:,} training rows ({100 * share:.1f} %) are surely "
        "labeled otherwise than the base's features say"
    )
    if share <= NOISE:
        return Finding("label-noise", "ok", share, NOISE, sentence)
    first = noise["listed"][0]
    return Finding(
        "label-noise",
        "warning" if share > 2 * NOISE and noise["rows"] >= FEWEST_CHECKED else "note",
        share,
        NOISE,
        f"{sentence}, the surest {first['where']}: `{first['given']}`, probably "
        f"`{first['suspected']}`",
        "read the rows under `label_noise` in `data.json`, the surest first: some are wrong, some "
        "are beyond what the base can tell",
    )


def check_languages(data: Mapping[str, Any]) -> Finding | None:
    """Whether rows to judge by are in languages that training rows are not in."""
    words = data.get("languages") or {}
    train = _told(words.get("train"))
    if not train:
        return None
    figures = {}
    for name in ("validation", "test"):
        held = _told(words.get(name))
        strange = {code: share for code, share in held.items() if train.get(code, 0) < HARDLY}
        figures[name] = (sum(strange.values()), sorted(strange))
    worst = max(figures, key=lambda name: figures[name][0])
    share, codes = figures[worst]
    sentence = f"{100 * share:.0f} % of the {worst} rows are in languages hardly trained on"
    if share <= OTHER_LANGUAGE:
        return Finding("language-shift", "ok", share, OTHER_LANGUAGE, sentence)
    return Finding(
        "language-shift",
        "note",
        share,
        OTHER_LANGUAGE,
        f"{sentence}: {', '.join(codes)}",
        "train on such rows as well, or judge by rows in the languages of training",
    )


def _told(words: Mapping[str, Any] | None) -> dict[str, float]:
    """Share of each language among the rows of known language; empty where those are few."""
    if not words:
        return {}
    known = {code: share for code, share in words["languages"].items() if code != "unknown"}
    total = sum(known.values())
    enough = total * words["rows"] >= FEWEST_TOLD
    return {code: share / total for code, share in known.items()} if enough else {}


def check_quality(data: Mapping[str, Any]) -> Finding | None:
    """Whether many rows are ones that a filter would leave out."""
    counted = (data.get("filters") or {}).get("counted")
    if not counted or not counted["rows"]:
        return None
    found = counted["found"]
    share = sum(found.values()) / counted["rows"]
    each = ", ".join(f"{count:,} for `{name}`" for name, count in found.items())
    sentence = f"filters would leave out {100 * share:.1f} % of the training rows"
    sentence += f" (of {counted['rows']:,}: {each})" if found else ""
    if share <= LOW_QUALITY:
        return Finding("low-quality-rows", "ok", share, LOW_QUALITY, sentence)
    largest = max(found, key=lambda name: found[name])
    return Finding(
        "low-quality-rows",
        "note",
        share,
        LOW_QUALITY,
        sentence,
        f"read those listed in `data.json`; `data.filters.{largest}` leaves such rows out",
    )


def check_preprocessing(data: Mapping[str, Any], task: str) -> Iterator[Finding]:
    """Whether the tokenizer of the base reads these rows as well as its own kind of text."""
    fit = data.get("preprocessing")
    if not fit:
        return
    found = [_check_unknown(fit), _check_size(fit), *_check_lost(fit, task), _check_emoji(fit)]
    kept = [finding for finding in found if finding is not None]
    yield from kept
    if not kept:
        ratio = fit["bytes_per_token"] / fit["reference"]["bytes_per_token"]
        yield Finding(
            "preprocessing-mismatch",
            "ok",
            ratio,
            COARSE,
            f"the tokenizer reads the rows well: {_sizes(fit)}, and nothing is unknown to it",
        )


def _check_unknown(fit: Mapping[str, Any]) -> Finding | None:
    lost, pieces = fit["unknown"], fit["byte_tokens"]
    if lost + pieces <= UNKNOWN:
        return None
    gone = lost > UNKNOWN
    what = "stand for what it does not know" if gone else "are single bytes of unknown characters"
    share = lost if gone else lost + pieces
    return Finding(
        "preprocessing-mismatch",
        "warning" if gone else "note",
        share,
        UNKNOWN,
        f"{100 * share:.1f} % of the tokens that the base's tokenizer makes of the rows {what}",
        "take a base that knows this kind of text, or name what is missing in `base.add_tokens`",
    )


def _check_size(fit: Mapping[str, Any]) -> Finding | None:
    ratio = fit["bytes_per_token"] / fit["reference"]["bytes_per_token"]
    if ratio >= COARSE:
        return None
    return Finding(
        "preprocessing-mismatch",
        "warning",
        ratio,
        COARSE,
        f"the tokenizer cuts the rows small: {_sizes(fit)}, so the base has seen little like them",
        "expect a harder start and longer rows, or take a base that was made for such text",
    )


def _sizes(fit: Mapping[str, Any]) -> str:
    named = {"remember": "the text to be remembered"}.get(fit["reference"]["of"], "plain English")
    return (
        f"{fit['bytes_per_token']:.2f} bytes a token, {fit['reference']['bytes_per_token']:.2f} in "
        f"{named}"
    )


def _check_lost(fit: Mapping[str, Any], task: str) -> Iterator[Finding]:
    kinds = ("capitals", "accents") if task in WRITTEN else ("accents",)
    for kind in kinds:
        share = fit["lost"][kind]
        if share > LOST:
            yield Finding(
                "preprocessing-mismatch",
                "warning" if task in WRITTEN else "note",
                share,
                LOST,
                f"the tokenizer of the base takes the {kind} off {100 * share:.0f} % of the rows",
                f"take a base whose tokenizer keeps {kind}, if they matter here",
            )


def _check_emoji(fit: Mapping[str, Any]) -> Finding | None:
    share = fit["emoji_lost_rows"]
    if share <= LOST:
        return None
    named = ", ".join(fit["emoji_named"])
    return Finding(
        "preprocessing-mismatch",
        "warning",
        share,
        LOST,
        f"{100 * share:.0f} % of the rows have emoji that the base's tokenizer does not know",
        f"`base.add_tokens: [{named}]` gives each a token of its own",
    )


def _named(labels: Sequence[str]) -> str:
    shown = ", ".join(f"`{label}`" for label in labels[:5])
    return f"{shown} and {len(labels) - 5} more" if len(labels) > 5 else shown
