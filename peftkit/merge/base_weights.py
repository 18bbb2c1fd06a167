"""Single weights of a base out of its files, by the names that a loaded model gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors import safe_open

from peftkit.base.locate import Origin, locate, read_json, weight_files
from peftkit.errors import InputError
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """The files of a base, and in which of them each tensor is."""

    origin: Origin
    files: dict[str, Path]

    @property
    def names(self) -> list[str]:
        """Names as they stand in the files."""
        return list(self.files)

    def read(self, name: str) -> Tensor:
        """The tensor of a parameter.

        Raises:
            InputError: the base has no such parameter, or several could be meant.
        """
        found = self.find(name)
        with safe_open(self.files[found], framework="pt") as file:
            tensor: Tensor = file.get_tensor(found)
        return tensor

    def find(self, name: str) -> str:
        """The name of a parameter in the files: some lack the first part, or have one more.

        Raises:
            InputError: the base has no such parameter, or several could be meant.
        """
        if (near := nearest(name, self.files)) is not None:
            return near
        if name == "lm_head.weight" and read_json(self.origin).get("tie_word_embeddings"):
            ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
            tied = [each for each in self.files if each.endswith(ends)]
            if len(tied) == 1:
                return tied[0]
        raise InputError(
            f"`{self.origin.name}` has no tensor `{name}`, which the adapter changes",
            hint="name the base that it was trained on: `--base DIR`",
        )


def nearest(name: str, names: Collection[str]) -> str | None:
    """The one of these names that is meant: some lack the first part, or have one more."""
    if name in names:
        return name
    shorter = name.partition(".")[2]
    near = [each for each in names if each == shorter or each.partition(".")[2] == name]
    return near[0] if len(near) == 1 else None


def open_base(model: str) -> BaseWeights:
    """The weights of a base: a folder, a hub id or an embedded one.

    Raises:
        RecipeError: there is no such base.
        InputError: it holds no weights, or pickled or quantized ones.
    """
    origin = locate(BaseSection(model=model))
    if read_json(origin).get("quantization_config"):
        raise InputError(
            f"`{model}` is quantized: in 4 or 8 bits most of a change would be rounded away, and "
            "what its files hold are not the weights themselves",
            hint="name the model as it was before it was quantized, in 16 or 32 bits",
        )
    return open_weights(origin)


def open_weights(origin: Origin) -> BaseWeights:
    """The weights of a base that has been found."""
    files: dict[str, Path] = {}
    for path in weight_files(origin):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return BaseWeights(origin, files)
