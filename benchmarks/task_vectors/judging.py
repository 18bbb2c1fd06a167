"""The base with changes acting on it times numbers, measured as the product measures."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from peftkit import Delta
from peftkit.data.prepare import read_set
from peftkit.evaluate.evaluation import evaluate_set
from peftkit.merge.live import acting
from peftkit.pipeline.setup import make_encoder
from peftkit.pipeline.target import open_target
from peftkit.recipe.sections.data import DataSection, SourceSection
from peftkit.recipe.sections.evaluate import EvaluateSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from peftkit.data.example import Example

LENGTH = 128


class Judge:
    """The base, and the rows that it is judged on and searched on, by domain."""

    def __init__(self, base: str, folder: Path, domains: list[str]) -> None:
        self.target = open_target(base)
        section = DataSection.model_validate({"train": "-", "max_length": LENGTH})
        self._folder = folder
        self._encoder = make_encoder(
            self.target.section, section, self.target.base.tokenizer, self.target.stops
        )
        self.rows = {
            (domain, part): self._read(domain, part)
            for domain in domains
            for part in ("judge", "search")
        }
        self.base = {place: self.loss(*place) for place in self.rows}

    def _read(self, domain: str, part: str) -> Sequence[Example]:
        path = self._folder / f"{domain}.{part}.jsonl"
        sources = (SourceSection(source=str(path), format="text"),)
        return read_set("evaluation", sources, "error", self._encoder).examples

    def training_rows(self, domain: str) -> list[list[int]]:
        """The tokens that runs train on."""
        return [list(example.tokens) for example in self._read(domain, "train")]

    def loss(self, domain: str, part: str = "judge") -> float:
        """Loss per token of the model as it is now."""
        found = evaluate_set(
            self.target.model,
            self.rows[domain, part],
            self.target.base.tokenizer,
            EvaluateSection(rows=256),
            pad_id=self.target.base.pad_id,
            stops=self.target.stops,
        )
        return float(found.summary["loss"])

    def rise(self, domain: str, part: str = "judge") -> float:
        """By how much the loss is above the base's."""
        return self.loss(domain, part) - self.base[domain, part]

    @contextmanager
    def turned(self, terms: Mapping[str, Delta]) -> Iterator[Any]:
        """Inside, what is yielded sets the numbers of the terms."""
        with acting(self.target.model, terms) as dials:
            yield dials.turn


def kept(rise: float) -> float:
    """The share of the base's performance that is left: its perplexity by the new one."""
    return math.exp(-rise)


def random_like(delta: Delta, seed: int) -> Delta:
    """A random change in which every tensor has the norm that it has in this one."""
    generator = torch.Generator().manual_seed(seed)
    whole = {f"{name}.weight": change.dense() for name, change in delta.low.items()}
    found = {}
    for name, change in {**whole, **delta.dense}.items():
        noise = torch.randn(change.shape, generator=generator, dtype=torch.float64)
        found[name] = noise * (change.norm() / noise.norm())
    return Delta(dense=found, facts=delta.facts)
