"""A model to use: a run folder, an adapter folder or a base, with more adapters on top if asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from peftkit.adapters.expected import OWN_TYPES
from peftkit.adapters.fold import fold
from peftkit.adapters.folders import find_adapter
from peftkit.adapters.several import use
from peftkit.adapters.stack import FOUND, OWN, line_up, load_placed
from peftkit.adapters.task_file import read_task
from peftkit.adapters.tokens import added_tokens
from peftkit.adapters.verify import CONFIG_FILE, check_adapter_name
from peftkit.base.load import load_base, stop_ids
from peftkit.base.machine import choose_device
from peftkit.base.tasks import NEW_HEAD
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.schema import Recipe
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.adapters.stack import Placed
    from peftkit.base.load import Base

TEMPLATED = {"chat", "instruction"}
BARE = "base"
"""What a request calls the base without any adapter."""
TAKEN = (BARE, OWN)
"""Names that are no longer free for an adapter."""


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
    choices: Mapping[str | None, tuple[str, ...]]
    """Adapters that act together, by the name that asks for them; `None` is the target itself."""

    def fold(self) -> Any:
        """The plain model with the adapters in its own weights; the target is used up."""
        return fold(self.model)


def open_target(
    name: str,
    adapters: Sequence[str] = (),
    *,
    apart: bool = False,
    like: BaseSection | None = None,
) -> Target:
    """Load what `name` says, and every adapter of `adapters` beside it, each one checked.

    Args:
        name: a run folder, an adapter folder or a base.
        adapters: more of them, as `PATH` or `name=PATH`.
        apart: none of `adapters` acts until it is asked for; else they add up.
        like: says the task of a base that no adapter says it of.
    """
    folder = Path(name).expanduser()
    recipe = _recipe_of(folder)
    first = folder / "adapter" if recipe else folder
    own = [first] if recipe or (folder / CONFIG_FILE).exists() else []
    section = (
        _locked_base(folder, recipe)
        if recipe
        else _base_of(folder, name)
        if own
        else _named_base(name)
    )
    for path in own:
        if not (path / CONFIG_FILE).exists():
            raise InputError(f"`{name}` holds no adapter yet", hint="its run has not finished")
    placed = line_up([*((OWN, path) for path in own), *name_adapters(adapters)])
    section = _for_their_task(section, placed) if placed else _as_asked(section, like)
    if placed and not recipe:
        tokens = added_tokens(placed[0].folder, section)
        section = section.model_copy(update={"add_tokens": tokens})
    seed = recipe.seed if recipe else 0  # of weights, or of a head, that no file holds
    base = load_base(section, device=choose_device(), seed=seed)
    model = load_placed(base.model, placed, base=base.origin.name)
    choices = _choices(model, placed)
    if isinstance(model, PeftModel):
        present = [each.name for each in placed if each.name in model.peft_config]
        acting = [each for each in choices[None] if each in present] if apart else present
        use(model, acting or present[:1])
    template = base.tokenizer.chat_template is not None
    return Target(
        base=base,
        model=model.eval(),
        stops=stop_ids(base.origin, base.tokenizer, section.stop_tokens),
        section=section,
        recipe=recipe,
        templated=template and _trained_on_turns(folder, recipe, [each.folder for each in placed]),
        choices=choices,
    )


def name_adapters(written: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and folder of each `--adapter`; one without a name is called after its number.

    Raises:
        RecipeError: a name cannot be one, or stands there twice, or there is no adapter.
    """
    found: dict[str, Path] = {}
    for number, text in enumerate(written, 1):
        name, sign, path = text.partition("=")
        if not sign or Path(text).expanduser().exists():
            name, path = f"adapter{number}", text
        if check_adapter_name(name) in {*found, *TAKEN} or name.startswith(FOUND):
            raise RecipeError(
                f"--adapter {text}: the name `{name}` is taken",
                hint=f"give each a name of its own, but {' and '.join(TAKEN)}",
            )
        found[name] = find_adapter(path)
    return list(found.items())


def _choices(model: Any, placed: Sequence[Placed]) -> dict[str | None, tuple[str, ...]]:
    """What may be asked for, by name, as the adapters that then act together."""
    known = list(model.peft_config) if isinstance(model, PeftModel) else []
    choices: dict[str | None, tuple[str, ...]] = {None: ()}
    for each in placed:
        together = tuple(name for name in (*each.below, each.name) if name in known)
        if each.name == OWN:
            choices[None] = together
        elif not each.name.startswith(FOUND):
            choices[each.name] = together
    if all(each.name in known for each in placed):  # else the base itself is no longer there
        choices[BARE] = ()
    return choices


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


def _as_asked(section: BaseSection, like: BaseSection | None) -> BaseSection:
    """The base in the task of a recipe, which must be one that it does without training."""
    if like is None:
        return section
    if like.task in NEW_HEAD:
        raise RecipeError(
            f"base.task: a base that nothing was trained on has no head for {like.task}",
            hint="give a run or an adapter folder; a run's report has the base's figures",
        )
    return section.model_copy(update={"task": like.task})


def _for_their_task(section: BaseSection, placed: Sequence[Placed]) -> BaseSection:
    """The base as `task.json` wants it: of the target's own adapter, or else of the topmost."""
    own = next((each for each in placed if each.name == OWN), placed[-1])
    found = read_task(own.folder)
    labels = tuple(found["labels"]) or "auto"
    return section.model_copy(update={"task": found["task"], "labels": labels})


def _base_of(folder: Path, name: str) -> BaseSection:
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"`{name}/{CONFIG_FILE}` is not JSON: {problem}") from None
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"`{name}/{CONFIG_FILE}` does not say which base it is for",
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
