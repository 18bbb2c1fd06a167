"""What is laid out for publication: the right files, nothing private, or a refusal with reasons."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit.publish
from peftkit.adapters.verify import verify_adapter
from peftkit.errors import InputError, RecipeError, WriteError
from peftkit.publish.check import metadata, of_this_machine
from peftkit.publish.publish import Published, publish
from peftkit.publish.tree import PUBLISHED

SECRET = "ghp_" + "a1B2c3" * 7


def dry(run: Path, **rest: Any) -> tuple[Published, Path]:
    done = publish(run, "me/chat", dry_run=True, **rest)
    assert done.folder is not None
    return done, Path(done.folder)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reasons(run: Path, **rest: Any) -> str:
    with pytest.raises(InputError) as refusal:
        publish(run, "me/chat", dry_run=True, **rest)
    assert refusal.value.hint
    return "\n".join(refusal.value.problems)


def everything(folder: Path) -> str:
    """All text of a tree, and of weights the header."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) >= 3
    return "\n".join(path.read_bytes().decode("utf-8", errors="replace") for path in files)


def test_a_dry_run_writes_the_exact_tree(run: Path) -> None:
    done, folder = dry(run)
    assert folder == run / "publish-dry-run"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == set(done.files)
    assert found <= PUBLISHED
    assert len(found) == 7
    assert (done.url, done.commit, done.public, done.warnings) == (None, None, False, ())
    assert all(path.stat().st_mode & 0o044 for path in folder.rglob("*"))
    assert verify_adapter(folder).base == "org/tiny"


def test_the_package_can_be_called(run: Path, tmp_path: Path) -> None:
    done = peftkit.publish(str(run), "me/chat", dry_run=True, out=str(tmp_path / "there"))
    assert done.folder == str(tmp_path / "there")


def test_the_adapter_names_its_base_by_hub_id_and_commit(run: Path) -> None:
    _, folder = dry(run)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "b" * 40)
    before = json.loads((run / "adapter/adapter_config.json").read_text())
    apart = {key for key in config if config[key] != before[key]}
    assert apart == {"base_model_name_or_path", "revision"}


def test_the_weights_are_the_runs_own(run: Path) -> None:
    _, folder = dry(run)
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (run / "adapter" / name).read_bytes()


def test_no_path_and_no_name_of_a_machine_gets_out(run: Path) -> None:
    assert "/home/jane" in everything(run)
    _, folder = dry(run)
    text = everything(folder)
    assert "jane" not in text
    assert "acme-secret" not in text
    assert "a private row" not in text
    assert "chat.jsonl" in text
    lock = json.loads((folder / "peftkit/lock.json").read_text())
    assert lock["base"]["digest"] == "d" * 64
    assert lock["data"] == {"chat.jsonl": "e" * 64}


def test_a_second_dry_run_takes_the_place_of_the_first(run: Path) -> None:
    _, folder = dry(run)
    (run / "findings.json").unlink()
    done, _ = dry(run)
    assert "peftkit/findings.json" not in done.files
    assert not (folder / "peftkit/findings.json").exists()


def test_a_dry_run_removes_nothing_of_anyones(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match=r"thesis\.txt"):
        dry(run, out=tmp_path / "mine")
    with pytest.raises(RecipeError, match="is a file"):
        dry(run, out=tmp_path / "mine/thesis.txt")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not write"):
        dry(run, out=tmp_path / "file/below")


def test_out_is_for_a_dry_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="`--out`"):
        publish(run, "me/chat", out=tmp_path)


@pytest.mark.parametrize(
    "name", ["recipe.resolved.json", "metrics.json", "findings.json", "lock.json"]
)
def test_a_secret_in_any_record_is_refused(run: Path, name: str) -> None:
    record = json.loads((run / name).read_text())
    note = {"id": "note", "sentence": f"the token was {SECRET}"}
    added = [*record, note] if isinstance(record, list) else {**record, **note}
    (run / name).write_text(json.dumps(added))
    found = reasons(run)
    assert f"peftkit/{name}: line" in found
    assert "looks like a GitHub token" in found
    assert SECRET not in found


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_secret_in_a_tokenizer_is_refused(run: Path, name: str) -> None:
    (run / "adapter" / name).write_text(json.dumps({"note": f"https://jane:{SECRET}@example.com"}))
    assert f"{name}: line" in reasons(run)


def test_a_secret_in_the_header_of_the_weights_is_refused(run: Path) -> None:
    path = run / "adapter/adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "token": SECRET})
    assert "adapter_model.safetensors: line 1: looks like a GitHub token" in reasons(run)


def test_a_path_in_text_that_is_not_rewritten_is_refused(run: Path, tmp_path: Path) -> None:
    where = tmp_path / "models/base"
    (run / "adapter/chat_template.jinja").write_text(f"{{# from {where} #}}")
    assert f"chat_template.jinja: names a path of this machine, `{where}`" in reasons(run)


def test_vocabularies_may_hold_words_like_paths(run: Path) -> None:
    (run / "adapter/tokenizer.json").write_text(json.dumps({"/home/jane": 1}))
    (run / "adapter/tokenizer_config.json").write_text(
        json.dumps({"name_or_path": "/home/jane/acme-secret/tiny", "model_max_length": 512})
    )
    done, folder = dry(run)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(done.files)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings == {"name_or_path": "tiny", "model_max_length": 512}


def test_other_files_stay_where_they_are(run: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", ".env", "notes.md"):
        (run / "adapter" / name).write_text(SECRET)
    done, folder = dry(run)
    assert set(done.files) <= PUBLISHED
    assert SECRET not in everything(folder)


@pytest.mark.parametrize(("method", "refused"), [("lora", True), ("full", False)])
def test_an_adapter_of_random_weights_is_worth_nothing(
    run: Path, method: str, *, refused: bool
) -> None:
    path = run / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["base"]["weights"] = "random"
    recipe["adapter"]["method"] = method  # whose file has every parameter, if it is `full`
    path.write_text(json.dumps(recipe))
    if not refused:
        publish(run, "me/chat", dry_run=True)
        return
    assert "trained on random weights" in reasons(run)


def test_an_adapter_that_would_not_load_is_refused(run: Path) -> None:
    path = run / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, path)
    assert "would overwrite it" in reasons(run)


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("README.md", f"---\nlicense: mit\n---\n{'word ' * 30}{SECRET}", "revoke"),
        ("README.md", f"---\nlicense: mit\n---\n{'word ' * 30}/home/jane/x", "take the path out"),
        ("README.md", f"---\nlicense: mit\n---\n{'word ' * 5}", "delete adapter/README.md"),
        ("adapter_model.safetensors", "damaged", "peftkit finetune"),
    ],
)
def test_the_hint_fits_the_reason(run: Path, name: str, text: str, advice: str) -> None:
    (run / "adapter" / name).write_text(text)
    with pytest.raises(InputError) as refusal:
        dry(run)
    assert advice in str(refusal.value.hint)


def test_all_reasons_come_at_once(run: Path) -> None:
    change(run / "adapter/adapter_config.json", lora_alpha=float("nan"))
    change(run / "metrics.json", note=SECRET)
    (run / "adapter/README.md").write_text("# Mine\n[More Information Needed by hand]\n")
    found = reasons(run).splitlines()
    assert len(found) == 4, found  # two of them are about the card


def test_a_card_written_by_hand_is_kept(run: Path) -> None:
    card = "---\nlicense: mit\n---\n# Mine\n" + "My own words about what it does. " * 5
    (run / "adapter/README.md").write_text(card)
    _, folder = dry(run)
    assert (folder / "README.md").read_text() == card


@pytest.mark.parametrize(
    "card", ["", "---\nlicense: mit\n---\n# Model\n[More Information Needed]\n"]
)
def test_an_empty_form_is_replaced(run: Path, card: str) -> None:
    (run / "adapter/README.md").write_text(card)
    _, folder = dry(run)
    assert "# shakespeare-lora" in (folder / "README.md").read_text()


def test_our_own_card_is_made_anew_with_the_repository_in_it(run: Path) -> None:
    _, folder = dry(run)
    shutil.copy(folder / "README.md", run / "adapter/README.md")
    again = publish(run, "me/other", dry_run=True)
    assert '"me/other"' in (Path(str(again.folder)) / "README.md").read_text()


def test_no_license_is_worth_a_warning(run: Path) -> None:
    recipe = json.loads((run / "recipe.resolved.json").read_text())
    recipe["publish"]["license"] = "other"
    (run / "recipe.resolved.json").write_text(json.dumps(recipe))
    done, _ = dry(run)
    assert [warning for warning in done.warnings if "no license is set" in warning]


def test_records_that_are_absent_are_named(run: Path) -> None:
    (run / "metrics.json").unlink()
    done, folder = dry(run)
    assert "the run has no metrics.json: the card cannot tell of it" in done.warnings
    assert "It was not evaluated" in (folder / "README.md").read_text()


@pytest.fixture
def on_a_folder(run: Path) -> Path:
    """The same run on a base that lies in a folder of its own."""
    lock = json.loads((run / "lock.json").read_text())
    lock["base"] |= {"model": "/home/jane/models/tiny-copy", "commit": None}
    (run / "lock.json").write_text(json.dumps(lock))
    change(
        run / "adapter/adapter_config.json", base_model_name_or_path="/home/jane/models/tiny-copy"
    )
    return run


def test_a_base_in_a_folder_gets_no_name_that_others_could_take(on_a_folder: Path) -> None:
    done, folder = dry(on_a_folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert "`tiny-copy`, has no public name" in done.warnings[0]
    assert "base_model" not in (metadata((folder / "README.md").read_text()) or {})
    assert "jane" not in everything(folder)


def test_in_public_the_base_must_have_a_name(on_a_folder: Path) -> None:
    assert "has no public name" in reasons(on_a_folder, public=True)


def test_the_base_can_be_named(on_a_folder: Path) -> None:
    done, folder = dry(on_a_folder, base=f"org/tiny@{'c' * 40}", public=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "c" * 40)
    assert done.warnings == ()
    assert f'from_pretrained("org/tiny", revision="{"c" * 40}")' in everything(folder)


@pytest.mark.parametrize("base", ["/home/jane/x", "org/tiny@main", "builtin:tiny", "a/b/c", ""])
def test_what_is_no_hub_id_cannot_be_the_base(run: Path, base: str) -> None:
    with pytest.raises(RecipeError, match="is not a hub id"):
        dry(run, base=base)


def test_the_builtin_base_keeps_its_name(run: Path) -> None:
    lock = json.loads((run / "lock.json").read_text())
    lock["base"] |= {"model": "builtin:tiny", "commit": None}
    (run / "lock.json").write_text(json.dumps(lock))
    done, folder = dry(run, public=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "builtin:tiny"
    assert done.warnings == ()


def test_a_bare_adapter_can_be_published(trained: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(trained, tmp_path / "my-adapter"))
    change(adapter / "adapter_config.json", base_model_name_or_path="org/tiny", revision="b" * 40)
    done, folder = dry(adapter)
    assert set(done.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "an adapter without its run" in " ".join(done.warnings)
    assert "# my-adapter" in (folder / "README.md").read_text()


def test_the_adapter_of_a_run_stands_for_the_run(run: Path) -> None:
    done, _ = dry(run / "adapter", out=run / "look")
    assert "peftkit/metrics.json" in done.files


def test_there_must_be_something_to_publish(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no run at") as refusal:
        dry(tmp_path / "nowhere")
    assert refusal.value.exit_code == 2
    with pytest.raises(InputError, match="holds no adapter") as refused:
        dry(tmp_path)
    assert refused.value.exit_code == 65


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_configuration_is_refused(run: Path, text: str) -> None:
    (run / "adapter/adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        dry(run)


def test_which_paths_are_of_this_machine(tmp_path: Path) -> None:
    assert of_this_machine(str(tmp_path))
    assert of_this_machine("/home/jane/x")
    assert of_this_machine("C:\\Users\\jane")
    assert of_this_machine("~/secret/x")
    assert not of_this_machine("/usr/bin/python")
    assert not of_this_machine("/no-such-folder-here/x")


def test_the_command_tells_where_it_went(run: Path, peftkit: Any) -> None:
    done = peftkit("publish", run, "me/chat", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout
    assert "nothing was uploaded" in done.stderr


def test_the_command_says_what_is_wrong(tmp_path: Path, peftkit: Any) -> None:
    done = peftkit("publish", tmp_path / "nowhere", "me/chat")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run at")
    assert "hint: " in done.stderr
    assert done.stdout == ""
