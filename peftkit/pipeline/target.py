"""A model to use: a run folder, an adapter folder or a base, with more adapters on top if asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.adapters.expected import OWN_TYPES
from peftkit.adapters.fold import fold
from peftkit.adapters.store import CONFIG, add_adapter, load_adapter
from peftkit.adapters.task_file import read_task
from peftkit.adapters.tokens import added_tokens
from peftkit.base.load import load_base, stop_ids
from peftkit.base.machine import choose_device
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.schema import Recipe
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.base.load import Base

TEMPLATED = {"chat", "instruction"}


@dataclass(frozen=True, slots=True)
class Target:
    """A model ready to use, and what is known of how it was trained."""

    base: Base
    model: Any
    stops: frozenset[int]
    section: BaseSection
    """What the base was loaded as, its task and labels among it."""
    recipe: Recipe | None
    """The recipe of a run, where the target is one."""
    templated: bool
    """Whether prompts go through the chat template unless someone says otherwise."""

    def fold(self) -> Any:
        """The plain model with the adapters in its own weights; the target is used up."""
        return fold(self.model)


def open_target(name: str, adapters: Sequence[str] = ()) -> Target:
    """Load what `name` says, and every adapter of `adapters` on top of it, each one checked."""
    folder = Path(name).expanduser()
    recipe = _recipe_of(folder)
    first = folder / "adapter" if recipe else folder
    wanted = [first] if recipe or (folder / CONFIG).exists() else []
    section = (
        _locked_base(folder, recipe)
        if recipe
        else _base_of(folder, name)
        if wanted
        else _named_base(name)
    )
    for path in wanted:
        if not (path / CONFIG).exists():
            raise InputError(f"`{name}` holds no adapter yet", hint="its run has not finished")
    wanted += [_adapter_folder(adapter) for adapter in adapters]
    if wanted:
        section = _for_its_task(section, wanted[0])
    if wanted and not recipe:
        section = section.model_copy(update={"add_tokens": added_tokens(wanted[0], section)})
    base = load_base(section, device=choose_device())
    model = base.model
    for number, path in enumerate(wanted):
        model = load_adapter(model, path) if number == 0 else add_adapter(model, path, number)
    template = base.tokenizer.chat_template is not None
    return Target(
        base=base,
        model=model,
        stops=stop_ids(base.origin, base.tokenizer),
        section=section,
        recipe=recipe,
        templated=template and _trained_on_turns(folder, recipe, wanted),
    )


def _recipe_of(folder: Path) -> Recipe | None:
    path = folder / "recipe.resolved.json"
    return Recipe.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def _locked_base(folder: Path, recipe: Recipe) -> BaseSection:
    """The base of a run at the commit, and in the number format, that its `lock.json` recorded."""
    path = folder / "lock.json"
    lock = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {
        "revision": lock.get("base", {}).get("commit"),
        "dtype": lock.get("choices", {}).get("dtype"),
    }
    return recipe.base.model_copy(update={name: value for name, value in found.items() if value})


def _for_its_task(section: BaseSection, adapter: Path) -> BaseSection:
    """The base as the adapter's `task.json` wants it: with the labels that it was trained on."""
    found = read_task(adapter)
    labels = tuple(found["labels"]) or "auto"
    return section.model_copy(update={"task": found["task"], "labels": labels})


def _adapter_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    inner = folder / "adapter"
    found = inner if (inner / CONFIG).exists() else folder
    if not (found / CONFIG).exists():
        raise RecipeError(
            f"`{name}` is not an adapter: it has no {CONFIG}",
            hint="give a run folder or its `adapter` folder",
        )
    return found


def _base_of(folder: Path, name: str) -> BaseSection:
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"`{name}/{CONFIG}` is not JSON: {problem}") from None
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"`{name}/{CONFIG}` does not say which base it is for",
            hint=f"`peftkit generate BASE --adapter {name}` names it",
        )
    own = values.get("peft_type") in OWN_TYPES  # its numbers replace the base's, digit for digit
    return BaseSection(
        model=base,
        revision=values.get("revision") or "main",
        dtype="float32" if own else "auto",
    )


def _named_base(name: str) -> BaseSection:
    folder = Path(name).expanduser()
    return BaseSection(model=str(folder.resolve()) if folder.is_dir() else name)


def _trained_on_turns(folder: Path, recipe: Recipe | None, adapters: Sequence[Path]) -> bool:
    path = folder / "data.json"
    if recipe is None or not path.exists():
        return bool(adapters)
    formats = json.loads(path.read_text(encoding="utf-8"))["train"]["formats"]
    return bool(TEMPLATED & set(formats))
