"""A base is found where its name says, and refused before anything of it could run."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from peftkit.base.locate import BUILTIN, RUNS_CODE, Origin, digest, locate, weight_files
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.base import BaseSection

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def section(model: object, **rest: str) -> BaseSection:
    return BaseSection.model_validate({"model": str(model), **rest})


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def found(folder: Path) -> Origin:
    return Origin("base", folder, None)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal_of(folder: Path, **rest: str) -> InputError:
    with pytest.raises(InputError) as refusal:
        locate(section(folder, **rest))
    assert refusal.value.exit_code == 65
    assert str(folder) in refusal.value.message
    return refusal.value


def test_the_embedded_base_is_in_the_package() -> None:
    origin = locate(section("builtin:tiny"))
    assert origin == Origin("builtin:tiny", BUILTIN["builtin:tiny"], None)
    assert not origin.local
    assert (origin.folder / "config.json").is_file()
    assert [path.name for path in weight_files(origin)] == ["model.safetensors"]


def test_an_unknown_embedded_base_is_told_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no `builtin:tny`; did you mean `builtin:tiny`") as near:
        locate(section("builtin:tny"))
    assert near.value.exit_code == 2
    assert near.value.hint == "embedded: builtin:tiny"
    with pytest.raises(RecipeError, match=r"there is no `builtin:zzzzzzzzzzzzz`$"):
        locate(section("builtin:zzzzzzzzzzzzz"))


def test_a_folder_is_itself(base: Path) -> None:
    origin = locate(section(base))
    assert origin == Origin(str(base), base.resolve(), None)
    assert origin.local


@pytest.mark.parametrize("name", ["{}/nowhere", "./nowhere", "../a", "~/nowhere/a", "a/b/c", "a b"])
def test_a_folder_that_is_not_there_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"base\.model: no folder at") as refusal:
        locate(section(name.format(tmp_path)))
    assert refusal.value.exit_code == 2
    assert "builtin:tiny" in str(refusal.value.hint)


def test_a_file_is_no_folder(base: Path) -> None:
    with pytest.raises(RecipeError, match="no folder at"):
        locate(section(base / "config.json"))


@pytest.mark.parametrize("name", ["org/none", "none"])
def test_a_hub_model_cannot_be_looked_for_offline(name: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        locate(section(name))
    assert refusal.value.message == (
        f"base.model: no folder `{name}` here, and the hub cannot be reached to look for it"
    )
    assert "HF_HUB_OFFLINE" in str(refusal.value.hint)


def test_a_hub_model_downloaded_earlier_is_found_at_its_commit(tiny_llama: Path) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "models--org--tiny"
    snapshot = shutil.copytree(tiny_llama, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for revision in ("main", COMMIT):
        origin = locate(section("org/tiny", revision=revision))
        assert (origin.name, origin.commit) == ("org/tiny", COMMIT)
        assert origin.folder.samefile(snapshot)
        assert not origin.local
    with pytest.raises(RecipeError, match="the hub cannot be reached"):
        locate(section("org/tiny", revision="v2"))


def test_a_folder_without_a_config_is_refused(base: Path) -> None:
    (base / "config.json").unlink()
    assert "it has no config.json" in refusal_of(base).message


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "is not JSON"), ("", "is not JSON"), ("[1]", "not an object"), ("[" * 9999, "not JSON")],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_damaged_config_is_refused(base: Path, name: str, content: str, reason: str) -> None:
    (base / name).write_text(content)
    message = refusal_of(base).message
    assert reason in message
    assert name in message


def test_a_folder_without_weights_is_refused_unless_they_are_to_be_random(base: Path) -> None:
    (base / "model.safetensors").unlink()
    refusal = refusal_of(base)
    assert "holds no weights" in refusal.message
    assert "base.weights: random" in str(refusal.hint)
    assert locate(section(base, weights="random")).folder == base.resolve()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_pickled_weights_are_refused(base: Path, name: str) -> None:
    (base / "model.safetensors").rename(base / name)
    refusal = refusal_of(base)
    assert f"holds pickled weights (`{name}`)" in refusal.message
    assert "save_pretrained" in str(refusal.hint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", RUNS_CODE)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_what_asks_for_code_is_refused(base: Path, name: str, key: str, weights: str) -> None:
    change(base / name, **{key: {"AutoModelForCausalLM": "code.Model"}})
    assert f"{name}` asks for code from elsewhere to be run: `{key}`" in (
        refusal_of(base, weights=weights).message
    )


def test_an_adapter_is_no_base(base: Path) -> None:
    (base / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a base model" in refusal_of(base).message


def test_the_digest_tells_any_byte_of_the_weights(base: Path) -> None:
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    before = digest(found(base))
    for place in (len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        weights.write_bytes(changed)
        assert digest(found(base)) != before
        assert digest(found(base), weights=False) == digest(found(base), weights=False)
    weights.write_bytes(content)
    assert digest(found(base)) == before


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json"),
    ],
)
def test_the_digest_tells_what_decides_how_text_is_read(base: Path, name: str) -> None:
    """The template and the stop tokens are as much part of a base as its weights are."""
    before = digest(found(base)), digest(found(base), weights=False)
    (base / name).write_text((base / name).read_text() + " ")
    after = digest(found(base)), digest(found(base), weights=False)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_the_digest_does_not_tell_the_place_or_what_lies_beside(base: Path, tmp_path: Path) -> None:
    before = digest(found(base))
    (base / "README.md").write_text("words")
    (base / "optimizer.json").write_text("{}")
    other = shutil.move(base, tmp_path / "elsewhere")
    assert digest(found(Path(other))) == before


def test_without_weights_the_digest_is_another_and_needs_none(base: Path) -> None:
    both = digest(found(base))
    only = digest(found(base), weights=False)
    assert both != only
    (base / "model.safetensors").unlink()
    assert digest(found(base), weights=False) == only


def test_a_digest_that_the_hub_knows_is_not_computed_again(base: Path, tmp_path: Path) -> None:
    """The hub's cache links to files named by their digest; those are many gigabytes."""
    content = (base / "model.safetensors").read_bytes()
    before = digest(found(base))
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    (base / "model.safetensors").rename(blob)
    (base / "model.safetensors").symlink_to(blob)
    assert digest(found(base)) == before
    blob.write_bytes(b"not read")
    assert digest(found(base)) == before
