"""A new adapter that starts from an earlier one: above it, on a base that has it, or as itself.

What stands under it stays frozen, and is noted beside it. The folder of the new adapter is an
ordinary one. A note in it says, by digest, which adapter it was trained above; where that lies, the
recipe of its run says. Without it the new one means little.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from peftkit.adapters.attach import UNDER, attach
from peftkit.adapters.beginning import fold_in, go_on_as, refuse_another_kind, refuse_to_fold
from peftkit.adapters.expected import OWN_TYPES
from peftkit.adapters.fold import fold
from peftkit.adapters.folders import digest_of, expand, find_adapter, read_note
from peftkit.adapters.in_place import forget_before
from peftkit.adapters.several import TOGETHER, load_beside, use
from peftkit.adapters.store import load_adapter
from peftkit.adapters.task_fit import left_behind, restore_head, shared_shapes
from peftkit.adapters.verify import CONFIG_FILE, AdapterFacts, verify_adapter
from peftkit.adapters.whole import whole_parts
from peftkit.base.tasks import new_parts
from peftkit.base.tokens import added_rows
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.adapter import IN_PLACE, NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peftkit.recipe.sections.adapter import AdapterSection

OWN = "default"
"""peft's name for the one adapter of a model."""
FOUND = "under_"
"""How adapters are called that nobody named, because another was trained above them."""


@dataclass(frozen=True, slots=True)
class Below:
    """A verified adapter that stands under another."""

    folder: Path
    facts: AdapterFacts
    folded: bool = False
    """Whether what stands above it takes it for a part of the base."""

    @property
    def name(self) -> str:
        """What a person calls it: its run's folder, or its own."""
        inside = self.folder.name == "adapter"
        return self.folder.parent.name if inside else self.folder.name

    @property
    def digest(self) -> str:
        """Of all that decides what it does."""
        return digest_of(self.folder)

    @property
    def own(self) -> bool:
        """Whether it changes the base itself."""
        return self.facts.peft_type in OWN_TYPES


@dataclass(frozen=True, slots=True)
class Placed:
    """One adapter of several, in the order in which they are loaded."""

    name: str
    folder: Path
    below: tuple[str, ...] = ()
    """Names of those that it was trained above, the lowest first."""
    folded: bool = False
    """Whether it was trained on a base that had these in its weights."""


def find_below(section: AdapterSection, model: Any, *, base: str) -> tuple[Below, ...]:
    """Every adapter that will stand under the new one, the lowest first, each one verified.

    Args:
        section: of the new adapter.
        model: the base, with or without memory for its weights.
        base: name of the base.

    Raises:
        RecipeError: there is none at the path, or the new one cannot stand on it.
        InputError: it must not be loaded.
    """
    if section.under == NOTHING:
        return ()
    if (
        added_rows(model) and section.under_as != "continued"
    ):  # of adapters with rows of an embedding, peft takes one at a time
        raise RecipeError(
            "base.add_tokens: new tokens cannot be trained above an earlier adapter",
            hint="`--set adapter.under=none`, or train without new tokens",
        )
    try:
        folder = find_adapter(section.under)
    except RecipeError as problem:
        raise RecipeError(f"adapter.under: {problem.message}", hint=problem.hint) from None
    below = []
    chain = expand(folder)
    notes = [read_note(each) for each in chain[1:]]
    folded = [bool(note and note["folded"]) for note in notes]
    for each, in_base in zip(chain, [*folded, section.under_as == "folded"], strict=True):
        restore_head(model, each)
        unused = left_behind(model, each)
        facts = verify_adapter(each, shared_shapes(model, each), base=base, unused=unused)
        found = Below(each, facts, in_base)
        below.append(found)
        if section.under_as == "folded":
            refuse_to_fold(model, facts.peft_type, found.name)
        elif section.under_as == "stacked" and not any(folded[len(below) - 1 :]):
            _refuse_other_kinds(section, found)
            _refuse_two_heads(model, section, found)
    if section.under_as == "continued":
        refuse_another_kind(section.method, below[-1].facts.peft_type, below[-1].name)
    return tuple(below)


def attach_over(
    model: Any,
    section: AdapterSection,
    below: Sequence[Below],
    *,
    seed: int,
    base: str,
    **start: Any,
) -> Any:
    """The model with an adapter that trains, and starts from the earlier ones as the section says.

    `base_only` then means the base with those, as it was before this one began. What else a fresh
    one may start from is handed to `attach`.
    """
    goes_on = below[-1] if section.under_as == "continued" else None
    below = below[:-1] if goes_on else below
    in_base = 1 + max((number for number, each in enumerate(below) if each.folded), default=-1)
    for each in below[:in_base]:
        model = fold_in(model, each.folder, base=base)
    below = below[in_base:]
    for each in below:
        if each.own:
            model = load_adapter(model, each.folder, base=base)
            forget_before(model)
    adapted = attach(model, section, seed=seed, **({} if goes_on else start))
    names = []
    for number, each in enumerate(below):
        if not each.own:
            names.append(f"{FOUND}{number}")
            load_beside(adapted, each.folder, names[-1], base=base)
    if names:
        use(adapted, [*names, OWN])
        _silence(adapted, names)
        setattr(adapted, UNDER, tuple(names))
    if goes_on:
        go_on_as(adapted, goes_on.folder)
    return adapted


def line_up(wanted: Sequence[tuple[str, Path]]) -> list[Placed]:
    """Adapters by name, each behind those that it was trained above, found if they are not named.

    Raises:
        InputError: one that another was trained above cannot be found.
    """
    placed: list[Placed] = []
    digests: dict[str, Placed] = {}
    for name, folder in wanted:
        for part in expand(folder, list(digests)):
            own = name if part == folder else f"{FOUND}{len(placed)}"
            note = read_note(part)
            under = digests[note["sha256"]] if note else None
            below = (*under.below, under.name) if under else ()
            placed.append(Placed(own, part, below, bool(note and note["folded"])))
            digests[digest_of(part)] = placed[-1]
    return placed


def load_placed(model: Any, placed: Sequence[Placed], *, base: str | None = None) -> Any:
    """The base with these adapters, of which only the first that peft knows acts yet.

    Raises:
        InputError: one must not be loaded, or cannot stand beside those before it.
    """
    for number, each in enumerate(placed):
        in_place = {other.name for other in placed[:number]}
        if each.folded and in_place <= set(each.below):
            model = _fold_together(model, each.below)
        if isinstance(model, PeftModel) and not each.folded:
            load_beside(model, each.folder, each.name, base=base)
        elif in_place <= set(each.below):
            model = load_adapter(model, each.folder, name=each.name, base=base)
        else:
            raise InputError(
                f"`{each.folder}` cannot be added: the first adapter changes the base itself"
            )
    return model


def _fold_together(model: Any, names: Sequence[str]) -> Any:
    """The plain model with those of these adapters in its weights that are not there already."""
    if isinstance(model, PeftModel):
        use(model, [name for name in names if name in model.peft_config])
    return fold(model)


def describe(below: Sequence[Below], how: str = "stacked") -> dict[str, Any] | None:
    """What the note beside a new adapter says: the one right under it, and all, by digest.

    One that goes on as another stands on what that stood on.
    """
    below = below[:-1] if how == "continued" else below
    if not below:
        return None
    every = [
        {"name": each.name, "sha256": each.digest, "peft_type": each.facts.peft_type}
        for each in below
    ]
    note = {"name": every[-1]["name"], "sha256": every[-1]["sha256"], "all": every}
    return note | ({"folded": True} if below[-1].folded else {})


def _refuse_other_kinds(section: AdapterSection, below: Below) -> None:
    """Say what cannot stand on what: peft adapts a model in one way at a time."""
    kind = below.facts.peft_type
    if below.own:
        return
    if section.method in IN_PLACE:
        raise RecipeError(
            f"adapter.method: {section.method} trains the base's own parameters, and cannot stand "
            f"on an adapter of kind {kind}",
            hint=f"`--set adapter.method={kind.lower()}` stacks on it"
            if kind in TOGETHER
            else "adapters of that kind carry none above them",
        )
    if section.method.upper() != kind or kind not in TOGETHER:
        works = f"`--set adapter.method={kind.lower()}` stacks on it"
        other = "adapters of that kind carry none above them; lora, ia3 and oft do"
        raise RecipeError(
            f"adapter.method: {section.method} cannot stand on an adapter of kind {kind}",
            hint=works if kind in TOGETHER else other,
        )


def _refuse_two_heads(model: Any, section: AdapterSection, below: Below) -> None:
    """Say where both would bring a module along whole: of such only one can act."""
    config = json.loads((below.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    saved = config.get("modules_to_save") or ()
    own = {*new_parts(model), *whole_parts(model, getattr(section, "also", ()))}
    twice = [] if below.own else sorted(own & set(saved))
    if twice:
        raise RecipeError(
            f"adapter.under: it brings `{twice[0]}` along, and so would the new adapter: only one "
            "of the two can act",
            hint="`--set adapter.under=none`, or stand on an adapter that was trained on text",
        )


def _silence(model: Any, names: Sequence[str]) -> None:
    """Take the dropout out of frozen adapters: it is part of training them, which is over."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in names and isinstance(getattr(module, "p", None), float):
            module.p = 0.0
