"""What a source may say of the turns that are learned."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.sections.data import SourceSection


def source_of(tmp_path: Path, written: str) -> SourceSection:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"base: {{model: builtin:tiny}}\ndata: {{train: {{source: a.jsonl, {written}}}}}\n"
    )
    (source,) = load_recipe(path).recipe.data.train
    return source


@pytest.mark.parametrize(
    ("written", "roles", "turns"),
    [
        ("format: chat", ("assistant",), "all"),
        ("learn: {turns: last}", ("assistant",), "last"),
        ("learn: {roles: user}", ("user",), "all"),
        ("format: instruction, learn: {roles: [user, assistant]}", ("user", "assistant"), "all"),
    ],
)
def test_roles_are_one_or_several(
    written: str, roles: tuple[str, ...], turns: str, tmp_path: Path
) -> None:
    learn = source_of(tmp_path, written).learn
    assert (learn.roles, learn.turns) == (roles, turns)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("learn: {turns: first}", "data.train.learn.turns"),
        ("learn: {roles: []}", "data.train.learn.roles"),
        ("learn: {role: user}", "did you mean `roles`"),
        ("format: text, learn: {turns: last}", "rows of format `text` have none"),
        ("control_tokens: keep", "data.train.control_tokens"),
    ],
)
def test_what_means_nothing_is_refused(written: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refusal:
        source_of(tmp_path, written)
    assert told in "\n".join(refusal.value.problems)
