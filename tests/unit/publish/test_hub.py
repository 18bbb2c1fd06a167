"""Uploading: one commit, private unless asked, patient with a busy hub, clear about a shut one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

READ_ONLY = "hf_" + "readonly00" * 3
TREE = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "peftkit/findings.json",
    "peftkit/lock.json",
    "peftkit/metrics.json",
    "peftkit/recipe.resolved.json",
}


def test_an_upload_is_one_private_commit(run: Path, hub: Any, peftkit: Any) -> None:
    done = peftkit("publish", run, "me/chat", "--json")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/chat"]
    assert repository.private
    assert set(repository.files) == TREE
    assert len(hub.asked("/commit/")) == 1
    assert repository.messages == ["Publish chat with peftkit"]
    said = json.loads(done.stdout)
    assert (said["url"], said["commit"]) == (f"{hub.address}/me/chat", repository.head)
    assert set(said["files"]) == TREE
    weights = repository.files["adapter_model.safetensors"]
    assert weights == (run / "adapter/adapter_model.safetensors").read_bytes()
    assert all(bool(torch.isfinite(value).all()) for value in load(weights).values())
    card = repository.files["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "me/chat")' in card


def test_the_weights_go_by_lfs_where_the_hub_is_not_the_public_one(
    run: Path, hub: Any, peftkit: Any
) -> None:
    assert peftkit("publish", run, "me/chat").returncode == 0
    assert len(hub.asked("objects/batch")) == 1
    assert hub.asked("xet") == []


def test_public_only_when_asked(run: Path, hub: Any, peftkit: Any) -> None:
    done = peftkit("publish", run, "me/chat", "--public")
    assert done.returncode == 0, done.stderr
    assert not hub.repositories["me/chat"].private
    assert "the base, `org/tiny`, cannot be seen by everyone" in done.stderr


def test_a_public_repository_does_not_become_an_accident(run: Path, hub: Any, peftkit: Any) -> None:
    assert peftkit("publish", run, "me/chat", "--public").returncode == 0
    done = peftkit("publish", run, "me/chat")
    assert done.returncode == 2
    assert "there already, and public" in done.stderr
    assert len(hub.repositories["me/chat"].messages) == 1


def test_publishing_again_replaces_what_is_there(run: Path, hub: Any, peftkit: Any) -> None:
    assert peftkit("publish", run, "me/chat").returncode == 0
    files = hub.repositories["me/chat"].files
    files |= {"tokenizer.json": b"{}", "notes.txt": b"the owner's own"}
    (run / "findings.json").unlink()
    assert peftkit("publish", run, "me/chat").returncode == 0
    assert set(files) == (TREE | {"notes.txt"}) - {"peftkit/findings.json"}
    assert len(hub.repositories["me/chat"].messages) == 2


def test_a_name_without_an_owner_is_the_users_own(run: Path, hub: Any, peftkit: Any) -> None:
    done = peftkit("publish", run, "chat", "--json")
    assert json.loads(done.stdout)["repo"] == "me/chat"
    assert set(hub.repositories["me/chat"].files) == TREE


def test_somebody_else_commits_meanwhile(run: Path, hub: Any, peftkit: Any) -> None:
    assert peftkit("publish", run, "me/chat").returncode == 0
    repository = hub.repositories["me/chat"]
    hub.fail("/preupload/", 500, lambda: repository.commits.append("f" * 40))
    done = peftkit("publish", run, "me/chat")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked("/commit/")) == 3  # the first of two was on a head that had moved
    assert len(repository.messages) == 2


@pytest.mark.parametrize(("path", "status"), [("/commit/", 409), ("/repos/create", 503)])
def test_a_busy_hub_is_asked_again(
    run: Path, hub: Any, peftkit: Any, path: str, status: int
) -> None:
    hub.fail(path, status)
    done = peftkit("publish", run, "me/chat")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked(path)) == 2
    assert len(hub.repositories["me/chat"].messages) == 1


IMPATIENT = """
import sys
from pathlib import Path
from peftkit.errors import PeftkitError
from peftkit.publish.hub import HubDestination
from peftkit.publish.tree import lay_out
pauses = []
hub = HubDestination("me/chat", pause=pauses.append)
hub.create(public=False)
tree = lay_out(Path(sys.argv[1]), Path(sys.argv[2]), repo="me/chat")
try:
    hub.upload(tree, "Try")
except PeftkitError as error:
    print(error.exit_code, error, *pauses)
"""


@pytest.mark.parametrize(("status", "said"), [(409, "kept changing"), (412, "kept changing")])
def test_a_hub_that_stays_busy_is_left_alone(
    run: Path, hub: Any, beside: Any, tmp_path: Path, status: int, said: str
) -> None:
    for _ in range(9):
        hub.fail("/commit/", status)
    done = beside(IMPATIENT, run, tmp_path / "tree")
    assert said in done.stdout, done.stderr
    assert done.stdout.split()[0] == "74"
    assert [float(pause) for pause in done.stdout.split()[-3:]] == [0.5, 1.0, 2.0]
    assert len(hub.asked("/commit/")) == 4


CLOSED = [
    ({"HF_TOKEN": ""}, "not logged in", "hf auth login"),
    ({"HF_TOKEN": "hf_" + "unknown000" * 3}, "does not accept your token", "hf auth login"),
    ({"HF_TOKEN": READ_ONLY}, "may not write to `me/chat`", "hf auth login"),
]
CLOSED_FROM_THE_START = [
    ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached", "check the connection"),
]


def check_explained(done: Any, said: str, typed: str) -> None:
    assert done.returncode == 74, done.stderr
    assert said in done.stderr
    assert re.search(f"hint: .*{typed}", done.stderr)
    assert "Traceback" not in done.stderr
    assert "hf_" not in done.stderr + done.stdout


@pytest.mark.parametrize(("changed", "said", "typed"), CLOSED)
def test_a_closed_door_is_explained(
    run: Path, hub: Any, peftkit: Any, changed: dict[str, str], said: str, typed: str
) -> None:
    check_explained(peftkit("publish", run, "me/chat", **changed), said, typed)
    assert hub.repositories == {}


@pytest.mark.parametrize(("changed", "said", "typed"), CLOSED_FROM_THE_START)
def test_no_way_to_the_door_is_explained(
    run: Path, hub: Any, peftkit_anew: Any, changed: dict[str, str], said: str, typed: str
) -> None:
    check_explained(peftkit_anew("publish", run, "me/chat", **changed), said, typed)
    assert hub.requests == []


def test_a_server_that_is_no_hub_is_explained(run: Path, hub: Any, peftkit: Any) -> None:
    hub.fail("/repos/create", 200)
    done = peftkit("publish", run, "me/chat")
    check_explained(done, "no sensible answer from", "HF_ENDPOINT")


def test_a_namespace_of_others_is_explained(run: Path, peftkit: Any) -> None:
    done = peftkit("publish", run, "theirs/chat")
    assert done.returncode == 74
    assert "may not write to `theirs/chat`" in done.stderr


@pytest.mark.parametrize(
    "name", ["a/b/c", "me/-chat", "me/chat.git", "me/ch at", "", "me/" + "x" * 99]
)
def test_names_that_no_hub_takes(run: Path, hub: Any, peftkit: Any, name: str) -> None:
    done = peftkit("publish", run, name)
    assert done.returncode == 2
    assert "cannot name a repository" in done.stderr
    assert hub.requests == []


def test_what_must_not_be_published_is_never_sent(run: Path, hub: Any, peftkit: Any) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["verdict"]["sentence"] += " hf_" + "secret0000" * 3
    (run / "metrics.json").write_text(json.dumps(metrics))
    done = peftkit("publish", run, "me/chat")
    assert done.returncode == 65
    assert "looks like a Hugging Face token" in done.stderr
    assert "secret0000" not in done.stderr
    assert hub.requests == []


LOAD = """
import sys
from pathlib import Path
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM
from peftkit.adapters.verify import module_shapes, verify_adapter
base, here, repo = sys.argv[1:]
ids = torch.arange(6, 40)[None]
def logits(adapter):
    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter).eval()(ids).logits
plain = AutoModelForCausalLM.from_pretrained(base)
print(verify_adapter(Path(snapshot_download(repo)), module_shapes(plain), base="org/tiny").sha256)
published = logits(repo)
print(float((published - logits(here)).abs().max()), float((published - plain(ids).logits).std()))
"""


def test_vanilla_peft_loads_what_was_published(
    run: Path, tiny_llama: Path, peftkit: Any, beside: Any
) -> None:
    assert peftkit("publish", run, "me/chat").returncode == 0
    done = beside(LOAD, tiny_llama, run / "adapter", "me/chat")
    assert done.returncode == 0, done.stderr
    apart, moved = map(float, done.stdout.split()[-2:])
    assert apart == 0
    assert moved > 1e-3


def test_the_lines_on_the_card_run_as_they_are(
    run: Path, tiny_llama: Path, hub: Any, peftkit: Any, beside: Any
) -> None:
    assert peftkit("publish", run, "me/chat", "--public").returncode == 0
    published = hub.repositories["me/chat"]
    base = type(published)(private=False, commits=["b" * 40])
    base.files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    hub.repositories["org/tiny"] = base
    blocks = re.findall(r"```python\n(.*?)```", published.files["README.md"].decode(), re.DOTALL)
    assert len(blocks) == 1
    done = beside(blocks[0], HF_TOKEN="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
    assert hub.asked(f"/org/tiny/resolve/{'b' * 40}/model.safetensors")
