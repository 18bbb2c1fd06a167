"""Where a tree goes: a folder for a look, or a hub, behind the same two verbs.

Everything the hub can answer with is turned into a sentence here. The token comes from
`hf auth login` or the environment and is never taken, kept or shown.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from peftkit.errors import PeftkitError, RecipeError, WriteError
from peftkit.publish.redact import redact
from peftkit.publish.tree import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from peftkit.publish.tree import Tree

Answer = TypeVar("Answer")

ATTEMPTS = 4
FIRST_PAUSE = 0.5
AGAIN = (408, 409, 412, 429, 500, 502, 503, 504)
"""Answers that mean "not now": somebody else committed first, or the server has trouble."""
LOGIN = "`hf auth login`, with a token that may write; HF_TOKEN works too"
PUBLIC_HUB = "https://huggingface.co"
CONNECTION_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the client raises when no answer comes: the class of whichever HTTP library it uses."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Where the tree is now."""

    url: str | None
    commit: str | None


class Destination(Protocol):
    """A place that a tree can be published to."""

    def create(self, *, public: bool) -> tuple[str, ...]:
        """Make the place if it is not there; what is worth a warning comes back."""

    def upload(self, tree: Tree, message: str) -> Uploaded:
        """Put the whole tree there at once."""


@dataclass(frozen=True, slots=True)
class FolderDestination:
    """A folder of this machine, for a look before anyone else has one."""

    folder: Path

    def create(self, *, public: bool) -> tuple[str, ...]:
        """Make room; only what an earlier look left there is removed."""
        del public
        if self.folder.is_file():
            raise RecipeError(f"`{self.folder}` is a file", hint="give another `--out DIR`")
        if not self.folder.exists():
            return ()
        files = [path for path in self.folder.rglob("*") if not path.is_dir()]
        strange = [p for p in files if p.relative_to(self.folder).as_posix() not in PUBLISHED]
        if strange:
            raise RecipeError(
                f"`{self.folder}` holds other files, such as `{strange[0].name}`",
                hint="give another `--out DIR`",
            )
        shutil.rmtree(self.folder)
        return ()

    def upload(self, tree: Tree, message: str) -> Uploaded:
        """Copy the tree."""
        del message
        shutil.copytree(tree.folder, self.folder, copy_function=shutil.copyfile)
        return Uploaded(None, None)


@dataclass(slots=True)
class HubDestination:
    """A repository on a hub; private unless it is said to be public."""

    repo: str
    pause: Callable[[float], None] = time.sleep
    api: HfApi = field(default_factory=HfApi)

    def create(self, *, public: bool) -> tuple[str, ...]:
        """Make the repository, or find it; one that strangers can see is no private one."""
        check_repo_name(self.repo)
        with _explained(self.repo):
            _need_connection()
            made = self._patiently(
                lambda: self.api.create_repo(self.repo, private=not public, exist_ok=True)
            )
            self.repo = made.repo_id
            hidden = self._patiently(lambda: self.api.model_info(self.repo)).private
        if hidden is False and not public:
            raise RecipeError(
                f"`{self.repo}` is there already, and public",
                hint="add `--public` if everyone may see it, or publish under another name",
            )
        if hidden and public:
            return (f"`{self.repo}` was private before and stays so; its settings can change that",)
        return ()

    def upload(self, tree: Tree, message: str) -> Uploaded:
        """Put the whole tree into one commit, on top of whatever is there by then."""
        with _explained(self.repo), _transfer_that_the_server_knows():
            return self._patiently(lambda: self._commit(tree, message))

    def visible_to_all(self, model: str) -> bool:
        """Whether somebody who is not logged in can see `model`."""
        try:
            with _explained(model):
                self._patiently(lambda: self.api.model_info(model, token=False))
        except PeftkitError:
            return False
        return True

    def _commit(self, tree: Tree, message: str) -> Uploaded:
        """One attempt, on the newest commit; operations cannot be used twice."""
        head = self.api.model_info(self.repo)
        there = {file.rfilename for file in head.siblings or ()}
        stale = sorted(there & PUBLISHED - set(tree.files))
        done = self.api.create_commit(
            self.repo,
            [
                *(CommitOperationAdd(name, tree.folder / name) for name in tree.files),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message,
            parent_commit=head.sha,
        )
        return Uploaded(f"{self.api.endpoint}/{self.repo}", done.oid)

    def _patiently(self, action: Callable[[], Answer]) -> Answer:
        """The action's answer; where the hub says "not now", a few more tries, ever later."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return action()
            except HfHubHTTPError as error:
                if error.response.status_code not in AGAIN:
                    raise
            self.pause(FIRST_PAUSE * 2**attempt)
        return action()


def check_repo_name(repo: str) -> None:
    """Refuse what no hub would take as the name of a repository.

    Raises:
        RecipeError: `repo` is not `name` or `owner/name`.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise RecipeError(
            f"`{repo}` cannot name a repository: expected `owner/name` of letters, digits, -, _ "
            "and ., at most 96",
            hint="for example `peftkit publish RUN me/chat-lora`",
        ) from None


def _need_connection() -> None:
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    if get_token() is None:
        raise LocalTokenNotFoundError


@contextmanager
def _transfer_that_the_server_knows() -> Iterator[None]:
    """Xet only with the public hub: others answer 404 to it, and the client has no other plan.

    The client reads its setting once, on import, so the variable alone would come too late.
    """
    before = constants.HF_HUB_DISABLE_XET
    if constants.ENDPOINT != PUBLIC_HUB and "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Every way in which a hub says no, as a sentence and something to type."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise WriteError("not logged in to the hub", hint=LOGIN) from None
    except OfflineModeIsEnabled:
        raise WriteError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded",
            hint="`unset HF_HUB_OFFLINE`, or `--dry-run` to write the files to a folder",
        ) from None
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from None
    except (CONNECTION_ERROR, ConnectionError) as error:
        raise WriteError(
            f"the hub at {redact(constants.ENDPOINT)} cannot be reached: {_first_line(error)}",
            hint="check the connection and HF_ENDPOINT, then run the same command again",
        ) from None
    except (KeyError, ValueError) as error:  # what the client makes of an answer it cannot read
        raise WriteError(
            f"no sensible answer from {redact(constants.ENDPOINT)}: {_first_line(error)}",
            hint="check that HF_ENDPOINT is the address of a hub",
        ) from None


def _first_line(error: Exception) -> str:
    return redact(str(error)).strip().partition("\n")[0] or type(error).__name__


def _refusal(repo: str, error: HfHubHTTPError) -> WriteError:
    status = error.response.status_code
    said = redact((error.server_message or "").strip() or f"status {status}")
    match status:
        case 401:
            return WriteError("the hub does not accept your token", hint=LOGIN)
        case 402 | 403:
            hint = f"check the owner's name, or {LOGIN}"
            return WriteError(f"your token may not write to `{repo}`: {said}", hint=hint)
        case 404:
            hint = f"check the name, or {LOGIN}"
            return WriteError(f"`{repo}` is not there, or your token may not see it", hint=hint)
        case 409 | 412:
            return WriteError(
                f"`{repo}` kept changing while it was written to: {said}",
                hint="wait until whoever else publishes there is done, then run it again",
            )
    again = "run the same command again later" if status in AGAIN else None
    return WriteError(f"the hub refused the upload: {said} ({status})", hint=again)
