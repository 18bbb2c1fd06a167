"""The model card of a run: what it is, what was measured, how to load it, from the run folder.

Written once into the adapter's own folder when a run ends, and once more by `peftkit publish`,
which knows the repository. Nothing is asked of the author that the run knows, nothing is left to
fill in, and no path of this machine is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from peftkit.report import story, tables, tolerant, wording
from peftkit.report.card_loading import CHANGED_ONLY, how_to_load
from peftkit.report.card_merge import made_of, measured_merge, read_merge, verdict_of_merge
from peftkit.report.origin import BaseName, base_name
from peftkit.report.reading import read_run
from peftkit.report.scrub import file_name, scrub, scrub_text
from peftkit.report.text import fenced, prose
from peftkit.report.tolerant import table, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from peftkit.report.facts import Run
    from peftkit.report.tolerant import Loose

MADE_BY = "<!-- written by peftkit from the run; delete this line to keep your own text -->"
"""Ends a card that was made, so that one which somebody wrote by hand is never replaced."""

_TASKS = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "seq2seq": "text2text-generation",
    "token-classification": "token-classification",
    "embedding": "sentence-similarity",
}
"""What a hub calls the tasks; those with labels or numbers a row are `text-classification`."""
_METHODS = {
    "lora": "LoRA",
    "ia3": "IA3",
    "vera": "VeRA",
    "oft": "OFT",
    "p-tuning": "P-tuning",
    "bitfit": "BitFit",
}
_LONGEST_RECIPE = 20_000


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything a card is made from."""

    run: Run
    base: BaseName
    config: Loose
    recipe: Loose
    repo: str | None
    tokenizer: bool
    """Whether the adapter brings a tokenizer of its own."""
    does: Loose
    """task.json, where the adapter does something else than write on."""
    merge: Loose
    """merge.json, where it was made of others."""
    below: tuple[tuple[str, str, str], ...] = ()
    """Name, kind and digest of each adapter that it was trained above, the lowest first."""


def build_card(run: Path, *, base: str | None = None, repo: str | None = None) -> str:
    """The README.md of the adapter in a run folder, or of a bare adapter folder.

    Args:
        run: the run folder, or a folder that holds adapter_config.json.
        base: hub id of the base, perhaps with `@commit`, where the run used a copy in a folder.
        repo: where it will be published, for the lines that load it.
    """
    subject = _subject(run, base, repo)
    parts = [
        f"# {prose(subject.run.name)}",
        _summary(subject),
        verdict_of_merge(subject.merge) or _verdict(subject.run),
        *made_of(subject.merge),
        "## How to load it",
        *_standing_on(subject),
        how_to_load(
            subject.base,
            subject.config,
            subject.repo,
            tokenizer=subject.tokenizer,
            does=subject.does,
            below=[(name, kind) for name, kind, _ in subject.below],
        ),
        *(measured_merge(subject.merge) or _measured(subject.run, _task(subject))),
        *_findings(subject.run),
        *_data(subject.run),
        *_training(subject),
        "## Base",
        _base(subject.base),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(subject)),
        "## License",
        _license(subject),
        MADE_BY,
    ]
    return scrub_text(f"{_front_matter(subject)}\n" + "\n\n".join(parts) + "\n")


def _subject(run: Path, base: str | None, repo: str | None) -> Subject:
    adapter = run / "adapter" if (run / "adapter").is_dir() else run
    config = table(tolerant.read_json(adapter / "adapter_config.json").value)
    facts = read_run(run)
    return Subject(
        run=facts,
        base=base_name(facts.lock, config, base),
        config=config,
        recipe=table(tolerant.read_json(run / "recipe.resolved.json").value),
        repo=repo,
        tokenizer=(adapter / "tokenizer_config.json").exists(),
        below=tuple(_below(tolerant.read_json(adapter / "under.json").value)),
        does=table(tolerant.read_json(adapter / "task.json").value),
        merge=read_merge(adapter),
    )


def _below(note: object) -> Iterator[tuple[str, str, str]]:
    """What a note beside the adapter says of those under it, as far as it can be read."""
    listed = table(note).get("all")
    for each in listed if isinstance(listed, list) else ():
        name, kind, digest = (text(table(each).get(key)) for key in ("name", "peft_type", "sha256"))
        yield file_name(name or "another"), kind or "LORA", digest or "unknown"


def _standing_on(subject: Subject) -> list[str]:
    """What must be under it, said before the lines that load it."""
    if not subject.below:
        return []
    named = " and ".join(
        f"{prose(name)} (weights with digest `{digest}`)" for name, _, digest in subject.below
    )
    sentence = (
        f"It was trained above another adapter and means little without it: {named}. Where the "
        "base is named in a comparison here, it is the base with what stands under this adapter."
    )
    return [sentence]


def _front_matter(subject: Subject) -> str:
    """The metadata that the hub reads, through its own class, which knows what it accepts."""
    from huggingface_hub import ModelCardData

    publish = table(subject.recipe.get("publish"))
    results = list(_results(subject))
    data = ModelCardData(
        base_model=subject.base.name if subject.base.kind == "hub" else None,
        base_model_relation="adapter" if subject.base.kind == "hub" else None,
        library_name="peft" if _known_to_peft(subject.config) else "peftkit",
        pipeline_tag=_TASKS.get(_task(subject), "text-classification"),
        license=text(publish.get("license")) or "other",
        language=_texts(publish.get("language")) or None,
        datasets=_hub_datasets(subject.run) or None,
        tags=list(dict.fromkeys(["peftkit", _method(subject), *_texts(publish.get("tags"))])),
        model_name=subject.run.name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _task(subject: Subject) -> str:
    named = text(subject.does.get("task"))
    return named or text(table(subject.recipe.get("base")).get("task")) or "causal-lm"


def _results(subject: Subject) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    task = _task(subject)
    for split, scores in subject.run.adapted.items():
        for key in wording.in_order(set(scores.values)):
            yield EvalResult(
                task_type=_TASKS.get(task, "text-classification"),
                dataset_type="custom",
                dataset_name=_sources(subject.run, split) or split,
                dataset_split=split,
                metric_type=key,
                metric_name=wording.metric(key).label,
                metric_value=round(scores.values[key], 6),
            )


def _summary(subject: Subject) -> str:
    run = subject.run
    rank = text(run.resolved.get("adapter.rank")) or text(subject.config.get("r"))
    of_rank = f" of rank {rank}" if rank and _method(subject) in ("lora", "vera") else ""
    plan = run.plan
    share = ""
    if plan and plan.trainable is not None:
        share = f" It trains {wording.count(plan.trainable)} parameters"
        share += f", {wording.share(plan.share)} of the base's." if plan.share else "."
    method = _METHODS.get(_method(subject), _method(subject))
    article = "An" if method[0] in "AEIOaeio" else "A"
    changed = text(subject.config.get("peft_type")) in CHANGED_ONLY
    what = "fine-tune of" if changed else f"adapter{of_rank} for"
    kind = f"{article} {method} {what} {_base_link(subject.base)}"
    version = text(run.lock.get("peftkit"))
    made = f", made with peftkit{' ' + version if version else ''}."
    return f"{kind}{made}{share}"


def _verdict(run: Run) -> str:
    """Whether it helped, said first and in plain words, above all when it did not."""
    if run.sentence is None:
        return "**It was not evaluated:** whether it helps, and what it costs, is not known."
    heads = {"yes": "**It helped.**", "no": "**It did not help:** prefer the base as it is."}
    head = heads.get(run.helped or "", "**Whether it helps is not clear.**")
    return f"{head} {prose(story.headline(run).lead)}"


def _measured(run: Run, task: str) -> list[str]:
    parts = ["## What was measured"]
    rows = [row for split in ("validation", "test") for row in _changes(run, split)]
    if rows:
        columns = ["", "base", "with adapter", "change", f"{story.CONFIDENCE} interval", ""]
        parts += [_grid(columns, rows), _how_much(run, task)]
    elif run.adapted:
        parts.append("The adapted model was measured, and no base beside it to compare with.")
    else:
        parts.append("Nothing: the run holds no figures.")
    if set(story.known(run)) - {"base"}:
        for compared in story.comparisons(run):
            bars = [[bar.name, bar.value] for bar in compared.bars]
            parts.append(_grid([f"{compared.label} ({run.split})", ""], bars))
    if run.remembered:
        kept = [
            [file_name(item.source), wording.loss(item.before), wording.loss(item.after)]
            for item in run.remembered
        ]
        parts.append(_grid(["loss on what should be remembered", "base", "with adapter"], kept))
    return parts


def _changes(run: Run, split: str) -> list[list[str]]:
    figures = [story.figure(change) for change in story.changes(run, split)]
    return [
        [f"{made.label} ({split})", made.before, made.after, made.change, made.reach, made.judgment]
        for made in figures
    ]


def _how_much(run: Run, task: str) -> str:
    counts = [
        f"{wording.plural(scores.values['rows'], f'{split} row')}"
        for split, scores in run.adapted.items()
        if "rows" in scores.values
    ]
    measured = f"Measured on {' and '.join(counts)}. " if counts else ""
    return f"{measured}Loss is {wording.loss_unit(task)}; base and adapted model saw the same rows."


def _findings(run: Run) -> list[str]:
    said = [finding for finding in run.findings if finding.severity != "ok"]
    if not said:
        return []
    lines = [
        f"- **{finding.severity}** ({prose(finding.id)}): "
        f"{wording.stopped(wording.sentence_case(prose(finding.sentence)))}"
        for finding in said
    ]
    return ["## What to know before using it", "\n".join(lines)]


def _data(run: Run) -> list[str]:
    rows = [
        [split.name, file_name(name), wording.count(count), wording.count(tokens)]
        for split in run.splits
        for name, count, tokens in split.sources
        or [("held out of the training rows", split.rows, split.tokens)]
    ]
    if not rows:
        return []
    parts = ["## What it was trained on", _grid(["", "source", "rows", "tokens"], rows)]
    return [*parts, prose(tables.leakage_sentence(run))]


def _training(subject: Subject) -> list[str]:
    facts = [
        f"{fact.label.lower()} {fact.value}" + (f" ({fact.note})" if fact.note else "")
        for fact in story.glance(subject.run)
    ]
    parts = ["## How it was trained"]
    if facts:
        parts.append(f"{wording.sentence_case('; '.join(facts))}.")
    versions = {
        name: text(value) for name, value in table(subject.run.lock.get("versions")).items()
    }
    if versions:
        parts.append(
            "With " + ", ".join(f"{name} {at}" for name, at in versions.items() if at) + "."
        )
    if subject.recipe:
        recipe = yaml.safe_dump(scrub(dict(subject.recipe)), sort_keys=False, allow_unicode=True)
        block = fenced(recipe.rstrip(), "yaml", limit=_LONGEST_RECIPE)
        head = "<details><summary>The recipe, every default filled in</summary>"
        parts.append(f"{head}\n\n{block}\n\n</details>")
    return parts if len(parts) > 1 else []


def _base(base: BaseName) -> str:
    if base.kind == "unknown":
        return "The adapter does not say which base it was trained on."
    where = {
        "hub": f"{_base_link(base)}",
        "builtin": f"`{base.name}`, the small model embedded in peftkit",
        "folder": f"a model in a folder called `{base.name}`; that is no name on a hub",
    }[base.kind]
    commit = f", commit `{base.commit}`" if base.commit and base.kind == "hub" else ""
    size = f", {wording.count(base.parameters)} parameters" if base.parameters else ""
    digest = f" Digest of its files: `{base.digest}`." if base.digest else ""
    return f"{wording.sentence_case(where)}{commit}{size}.{digest}"


def _limits(subject: Subject) -> Iterator[str]:
    run = subject.run
    yield "It works on this base only; on another of the same shape its weights mean nothing."
    yield "What the base gets wrong, and whom it is unfair to, the adapter inherits."
    if run.adapted:
        yield f"The figures come from {story.judged_on(run)}; other text may go otherwise."
    packed = text(table(subject.recipe.get("base")).get("quantize")) or "none"
    if packed != "none":
        yield (
            f"It was trained and measured on the base packed in {prose(packed)}; the lines above "
            "load the base as it is, where figures differ a little."
        )
    if run.adapted and "test" not in run.adapted:
        yield "There was no test set: the figures are on rows that were looked at while training."
    if run.adapted and not run.remembered:
        yield "What it may have made the base forget was not measured."
    if subject.base.kind == "folder":
        yield "The base has no public name: make sure that yours has the digest above."
    yield "No check of weights rules out a backdoor: load it if you trust who published it."


def _license(subject: Subject) -> str:
    named = text(table(subject.recipe.get("publish")).get("license")) or "other"
    terms = "The base's license and that of the data apply beside it."
    if named == "other":
        return f"The author has named no license for the adapter. {terms}"
    return f"The adapter is published under `{named}`. {terms}"


def _base_link(base: BaseName) -> str:
    if base.kind == "hub":
        return f"[{base.name}](https://huggingface.co/{base.name})"
    return "an unnamed base" if base.kind == "unknown" else f"`{base.name}`"


def _method(subject: Subject) -> str:
    named = text(subject.run.resolved.get("adapter.method")) or text(
        subject.config.get("peft_type")
    )
    return (named or "peft").lower().replace("_", "-")


def _known_to_peft(config: Loose) -> bool:
    return text(config.get("peft_type")) not in (*CHANGED_ONLY, "BOTTLENECK")


def _hub_datasets(run: Run) -> list[str]:
    names = [
        name for split in run.splits for name, _, _ in split.sources if name.startswith("hub:")
    ]
    return list(dict.fromkeys(re.split("[@:]", name.removeprefix("hub:"))[0] for name in names))


def _sources(run: Run, split: str) -> str:
    found = [item for item in run.splits if item.name == split]
    return ", ".join(file_name(name) for item in found for name, _, _ in item.sources)


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[prose(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
