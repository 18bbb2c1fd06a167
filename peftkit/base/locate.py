"""Find the base a recipe names: embedded, a folder, or a hub model at one commit."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.disk.digest import sha256_of
from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from peftkit.recipe.sections.base import BaseSection

BUILTIN = {"builtin:tiny": Path(__file__).parent / "tiny"}
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
TOKENIZER, GENERATION = "tokenizer_config.json", "generation_config.json"
DEFINING = (
    *("config.json", GENERATION, "tokenizer*", "special_tokens*", "added_tokens*"),
    *("vocab*", "merges*", "*.model", "*.tiktoken", "*.jinja"),
)
"""What a base is besides its weights: shape, stop tokens, tokenizer, chat template."""
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""What is downloaded: never code, never pickles."""
RUNS_CODE = ("auto_map", "_attn_implementation_internal", "_attn_implementation", "model_file")
"""Keys of an untrusted `config.json` that have led to code from elsewhere being run."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a base comes from, by name and by content."""

    name: str
    folder: Path
    commit: str | None

    @property
    def local(self) -> bool:
        """Whether the name is a folder of this machine, which nobody else can load."""
        return self.commit is None and not self.name.startswith("builtin:")


def locate(section: BaseSection) -> Origin:
    """The folder that holds the base, downloaded at one commit if it lives on a hub."""
    if section.model.startswith("builtin:"):
        return _builtin(section.model)
    folder = Path(section.model).expanduser()
    if folder.is_dir():
        origin = Origin(str(folder), folder.resolve(), None)
    elif folder.is_absolute() or folder.exists() or not HUB_ID.match(section.model):
        raise RecipeError(
            f"base.model: no folder at `{section.model}`",
            hint="give a folder that holds config.json and *.safetensors, a hub id such as "
            "`Qwen/Qwen3-0.6B`, or `builtin:tiny`",
        )
    else:
        origin = _download(section.model, section.revision)
    _refuse_what_runs_code(origin)
    if section.weights == "pretrained":
        weight_files(origin)
    return origin


def weight_files(origin: Origin) -> list[Path]:
    """The safetensors files of the base, in name order."""
    files = sorted(origin.folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(
        p.name for kind in ("*.bin", "*.pt", "*.pth") for p in origin.folder.glob(kind)
    )
    if pickled:
        raise InputError(
            f"`{origin.name}` holds pickled weights (`{pickled[0]}`), which can run code when read",
            hint="convert them once, in a sandbox, with transformers' `save_pretrained`, "
            "which writes safetensors",
        )
    raise InputError(
        f"`{origin.name}` holds no weights: no *.safetensors beside config.json",
        hint="`base.weights: random` trains the shape from scratch",
    )


def digest(origin: Origin, *, weights: bool = True) -> str:
    """Sha256 over the files that define the base; the hub's own digests are reused."""
    defining = {path for kind in DEFINING for path in origin.folder.glob(kind)}
    total = hashlib.sha256()
    for path in [*sorted(defining), *(weight_files(origin) if weights else [])]:
        if path.is_file():
            total.update(f"{path.name}:{_file_digest(path)}\n".encode())
    return total.hexdigest()


def read_json(origin: Origin, name: str = "config.json") -> dict[str, Any]:
    """One of the base's JSON files as plain data."""
    path = origin.folder / name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"`{origin.name}` is not a model folder: it has no {name}",
            hint="a model folder holds config.json, tokenizer.json and *.safetensors",
        ) from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"`{origin.name}/{name}` is not JSON: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(f"`{origin.name}/{name}` is not an object of keys")
    return values


def _builtin(name: str) -> Origin:
    if name not in BUILTIN:
        close = get_close_matches(name, BUILTIN, n=1)
        ending = f"; did you mean `{close[0]}`?" if close else ""
        raise RecipeError(
            f"base.model: there is no `{name}`{ending}", hint=f"embedded: {', '.join(BUILTIN)}"
        )
    return Origin(name, BUILTIN[name], None)


def _download(repo: str, revision: str) -> Origin:
    import huggingface_hub.errors as refusals
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(WANTED)))
    except refusals.GatedRepoError:
        raise RecipeError(
            f"base.model: `{repo}` asks for a licence to be accepted first",
            hint=f"accept it on the page of `{repo}`, then `hf auth login`",
        ) from None
    except refusals.RevisionNotFoundError:
        raise RecipeError(f"base.revision: `{repo}` has no revision `{revision}`") from None
    except refusals.RepositoryNotFoundError:
        raise RecipeError(
            f"base.model: no folder `{repo}` here, and no hub model of that name that you may read",
            hint="check the spelling; for a private model, `hf auth login` first",
        ) from None
    except (refusals.LocalEntryNotFoundError, refusals.OfflineModeIsEnabled):
        raise RecipeError(
            f"base.model: no folder `{repo}` here, and the hub cannot be reached to look for it",
            hint="check the connection (or HF_HUB_OFFLINE), or give the folder of a copy",
        ) from None
    return Origin(repo, folder, folder.name)


def _refuse_what_runs_code(origin: Origin) -> None:
    for name in ("config.json", TOKENIZER):
        if name == TOKENIZER and not (origin.folder / name).exists():
            continue
        values = read_json(origin, name)
        if found := [key for key in RUNS_CODE if values.get(key)]:
            raise InputError(
                f"`{origin.name}/{name}` asks for code from elsewhere to be run: `{found[0]}`",
                hint="remove the key if you trust the rest of the folder",
            )
    if (origin.folder / "adapter_config.json").exists():
        raise InputError(
            f"`{origin.name}` is an adapter, not a base model",
            hint="give the base it was trained on; `peftkit generate ADAPTER` uses both",
        )


def _file_digest(path: Path) -> str:
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):  # the hub's cache names large files by their sha256
        return blob
    return sha256_of(path)
