"""A finished run, a hub in this process, and `peftkit` run beside it as a user would."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

RECORDS = Path(__file__).parent / "run"
ADDRESS = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree|revision)/([^/]+)(/.+)?")
TOKEN = "hf_" + "abcdefghij" * 3  # no token of anyone's
READ_ONLY = "hf_" + "readonly00" * 3


@pytest.fixture(scope="session")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as a run leaves it: changed from its start, and naming a hub model."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("trained")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder with everything in it."""
    folder = Path(shutil.copytree(RECORDS, tmp_path / "shakespeare"))
    shutil.copytree(trained, folder / "adapter")
    return folder


@dataclass
class Repository:
    """One repository: its files, who may see it, and its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: [digest(b"start")])
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.commits[-1]


def digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def blob(content: bytes) -> str:
    return digest(b"blob %d\0" % len(content) + content)


@dataclass
class Hub:
    """What a hub knows, what it was asked, and what it will answer wrongly."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[tuple[str, int, Callable[[], None]]] = field(default_factory=list)

    def fail(self, path: str, status: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Answer the next request to a path that has `path` in it with `status`."""
        self.faults.append((path, status, meanwhile))

    def asked(self, path: str) -> list[str]:
        return [request for request in self.requests if path in request]

    def next_fault(self, path: str) -> int | None:
        for index, (part, status, meanwhile) in enumerate(self.faults):
            if part in path:
                del self.faults[index]
                meanwhile()
                return status
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of `create_repo`, `create_commit` and `snapshot_download`."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing: the requests are in `hub.requests`."""

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def serve(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.body()
        self.hub.requests.append(f"{self.command} {path}")
        if status := self.hub.next_fault(path):
            self.answer(status, {"error": "planted"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/lfs/(\w+)", path):
            self.hub.uploads[found[1]] = body
            self.answer(200, {})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        else:
            self.repository(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = serve  # noqa: N815 - the names the server looks for

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if self.token not in (TOKEN, READ_ONLY):
            self.answer(401, {"error": "Invalid username or password."})
        elif self.token == READ_ONLY or wanted.get("organization") == "theirs":
            self.answer(403, {"error": "You don't have the rights to create a model"})
        elif name in self.hub.repositories:
            self.answer(409, {"error": "exists", **url})
        else:
            self.hub.repositories[name] = Repository(wanted.get("visibility") == "private")
            self.answer(200, url)

    def batch(self, wanted: dict[str, Any]) -> None:
        actions = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}},
            }
            for item in wanted["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": actions})

    def repository(self, path: str, body: bytes) -> None:
        address, download = ADDRESS.fullmatch(path), re.match(r"/([^/]+/[^/]+)/resolve/\w+/", path)
        plain = re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)
        found = address or download or plain
        known = self.hub.repositories.get(found[1]) if found else None
        if known is None or (known.private and self.token is None):
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif download:
            self.download(known, path[download.end() :])
        elif address and address[2] == "preupload":
            self.answer(200, {"files": [self.mode(file) for file in json.loads(body)["files"]]})
        elif address and address[2] == "commit":
            self.commit(address[1], known, [json.loads(line) for line in body.splitlines()])
        elif address and address[4]:
            self.answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        elif address and address[2] == "tree":
            self.answer(200, [self.entry(name, at) for name, at in sorted(known.files.items())])
        elif found:
            self.answer(200, self.info(found[1], known))

    def mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": None,
        }

    def commit(self, name: str, known: Repository, lines: list[dict[str, Any]]) -> None:
        head, *changes = lines
        if head["value"].get("parentCommit") not in (None, known.head):
            self.answer(412, {"error": "A commit has happened since. Please refresh and retry."})
            return
        for change in changes:
            file = change["value"]["path"]
            if change["key"] == "file":
                known.files[file] = base64.b64decode(change["value"]["content"])
            elif change["key"] == "lfsFile":
                known.files[file] = self.hub.uploads[change["value"]["oid"]]
            else:
                del known.files[file]
        known.messages.append(head["value"]["summary"])
        known.commits.append(digest(json.dumps(lines).encode() + known.head.encode()))
        url = f"{self.hub.address}/{name}/commit/{known.head}"
        self.answer(200, {"commitOid": known.head, "commitUrl": url, "hookOutput": ""})

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": blob(content)}

    def info(self, name: str, known: Repository) -> dict[str, Any]:
        siblings = [{"rfilename": file} for file in sorted(known.files)]
        return {"id": name, "sha": known.head, "private": known.private, "siblings": siblings}

    def download(self, known: Repository, name: str) -> None:
        if name not in known.files:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        content = known.files[name]
        self.answer(200, content, ETag=f'"{blob(content)}"', X_Repo_Commit=known.head)


@pytest.fixture(scope="session")
def serving() -> Iterator[Hub]:
    """A hub on this machine, for the whole session: its address is read once, on import."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(serving: Hub) -> Hub:
    """The hub, empty."""
    for kept in (serving.repositories, serving.uploads, serving.requests, serving.faults):
        kept.clear()
    return serving


@dataclass
class Finished:
    """How a program ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


WORKER = """
import contextlib, io, json, os, sys, traceback
for line in sys.stdin:
    job = json.loads(line)
    os.environ |= job["settings"]
    sys.argv = ["-c", *job["arguments"]]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(job["code"], {"__name__": "__main__"})
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code or 0, out.getvalue(), err.getvalue()]), flush=True)
"""
COMMAND = "import sys; from peftkit.cli.main import main; sys.exit(main(sys.argv[1:]))"
Beside = Callable[..., Finished]


def outside(serving: Hub, home: Path) -> dict[str, str]:
    """The environment of a process that talks to the hub here, and to nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": serving.address,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.fixture(scope="session")
def worker(
    serving: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    """A process that runs what it is told, so that torch is imported once and not per test."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=outside(serving, tmp_path_factory.mktemp("hf-home")),
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture
def beside(hub: Hub, worker: subprocess.Popen[str]) -> Beside:
    """Runs Python code in the worker, logged in to the hub unless told otherwise."""

    def start(code: str, *arguments: object, **settings: str) -> Finished:
        assert hub.address
        assert worker.stdin is not None
        assert worker.stdout is not None
        job = {
            "code": code,
            "arguments": [*map(str, arguments)],
            "settings": {"HF_TOKEN": TOKEN, **settings},
        }
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        return Finished(*json.loads(worker.stdout.readline()))

    return start


@pytest.fixture
def peftkit(beside: Beside) -> Beside:
    """The command line, in the worker."""
    return lambda *arguments, **settings: beside(COMMAND, *arguments, **settings)


@pytest.fixture
def peftkit_anew(hub: Hub, tmp_path: Path) -> Beside:
    """The command line in a process of its own, for settings that are read on import."""

    def start(*arguments: object, **settings: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=outside(hub, tmp_path) | settings,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return start
