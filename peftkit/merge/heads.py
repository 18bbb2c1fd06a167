"""What becomes of heads that several terms bring: kept from one, averaged, or left out.

A head that was trained from random numbers is no change of the base, so heads have no sum.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from peftkit.adapters.expected import TOKEN_ROWS
from peftkit.adapters.module_tensors import PREFIX
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from peftkit.merge.delta import Delta

WAYS_OUT = (
    "`heads: {keep: NAME}` keeps that of one term, `heads: average` takes the mean, `heads: drop` "
    "leaves all out; `--set heads=...` on the command line"
)


def settle_heads(terms: Mapping[str, Delta], policy: str, keep: str = "") -> dict[str, Delta]:
    """The terms with the heads that the result is to have.

    The mean of heads is also the base's head plus the mean of what each changed of it, where the
    base has one; the numbers of the formula have no part in it.

    Args:
        terms: by name.
        policy: `error`, `drop`, `average`, or `keep`.
        keep: the term whose heads stay.

    Raises:
        InputError: several terms bring one head, and nothing is said of it; or heads that are to
            be averaged are of different shapes.
    """
    bring = {name: _heads(delta) for name, delta in terms.items()}
    if policy == "keep" and not bring[keep]:
        raise InputError(f"heads: `{keep}` brings no head that could be kept")
    if policy in ("drop", "keep"):
        return {
            name: delta if name == keep else _without(delta, bring[name])
            for name, delta in terms.items()
        }
    shared = _shared(bring)
    different = [head for head, owners in shared.items() if _differ(head, owners, terms)]
    if not different:
        return dict(terms)
    if policy == "error":
        owners = " and ".join(f"`{name}`" for name in shared[different[0]])
        raise InputError(
            f"{owners} bring a head of their own, `{_said(different[0])}`, and heads have no sum",
            hint=WAYS_OUT,
        )
    means = {head: _mean(head, shared[head], terms) for head in different}
    return {
        name: replace(
            delta, kept={**delta.kept, **{h: m for h, m in means.items() if h in delta.kept}}
        )
        for name, delta in terms.items()
    }


def _heads(delta: Delta) -> list[str]:
    return [name for name in delta.kept if not name.endswith(TOKEN_ROWS)]


def _without(delta: Delta, heads: Sequence[str]) -> Delta:
    left = {name: value for name, value in delta.kept.items() if name not in heads}
    return replace(delta, kept=left)


def _shared(bring: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The heads that several terms bring, and by which terms."""
    owners: dict[str, list[str]] = {}
    for name, heads in bring.items():
        for head in heads:
            owners.setdefault(head, []).append(name)
    return {head: names for head, names in owners.items() if len(names) > 1}


def _differ(head: str, owners: Sequence[str], terms: Mapping[str, Delta]) -> bool:
    first, *others = (terms[name].kept[head] for name in owners)
    return any(each.shape != first.shape or not torch.equal(each, first) for each in others)


def _mean(head: str, owners: Sequence[str], terms: Mapping[str, Delta]) -> Tensor:
    several = [terms[name].kept[head] for name in owners]
    shapes = {name: tuple(each.shape) for name, each in zip(owners, several, strict=True)}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{shape} in `{name}`" for name, shape in shapes.items())
        raise InputError(
            f"heads: `{_said(head)}` cannot be averaged: it has shape {told}", hint=WAYS_OUT
        )
    return torch.stack([each.double() for each in several]).mean(0)


def _said(head: str) -> str:
    return head.removeprefix(PREFIX)
