"""Changes of a base that act on the loaded model, each times a number that is set at will.

A sum is linear in its numbers, so to try others nothing has to be merged: hooks add what each low-
rank change, scale or network gives, and a parameter that changes as a whole holds the sum while it
acts. No layer is wrapped and no number of the base is overwritten, so afterwards it is the base.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from peftkit.adapters.bottleneck import BottleneckLayer
from peftkit.adapters.expected import TOKEN_ROWS
from peftkit.adapters.module_tensors import PREFIX
from peftkit.errors import InputError
from peftkit.merge.base_weights import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from peftkit.merge.delta import Delta
    from peftkit.merge.low_rank import LowRank
    from peftkit.merge.other_changes import Network, Scaling


@dataclass(slots=True)
class _Site:
    """A module of the base, what each term changes of it, and what acts of that now."""

    wide: torch.dtype
    device: torch.device
    low: dict[str, LowRank] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    scalings: dict[str, Scaling] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    factors: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    scales: dict[bool, Tensor] = field(default_factory=dict)
    """Of inputs (True) and of outputs (False)."""
    added: list[tuple[Any, dict[str, Tensor], bool]] = field(default_factory=list)
    """Activation and parameters of each network, and whether it stands beside the module."""
    given: Any = None
    """The inputs before they were scaled, while the module computes."""

    def turn(self, numbers: Mapping[str, float]) -> None:
        """Let every term act times its number."""
        on = [name for name, number in numbers.items() if number]
        low = [(numbers[name], self.low[name]) for name in on if name in self.low]
        self.factors = None
        if low:
            down = torch.cat([change.down for _, change in low])
            up = torch.cat([number * change.up for number, change in low], 1)
            self.factors = self._moved(down), self._moved(up)
        biases = [numbers[name] * self.biases[name] for name in on if name in self.biases]
        self.bias = self._moved(sum(biases[1:], start=biases[0])) if biases else None
        self.scales = {}
        for name in on:
            if (scaling := self.scalings.get(name)) is not None:
                whole = self.scales.get(scaling.inputs, self._moved(torch.ones(())))
                self.scales[scaling.inputs] = whole + self._moved(numbers[name] * scaling.values)
        self.added = [
            self._network(self.networks[name], numbers[name])
            for name in on
            if name in self.networks
        ]

    def _moved(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.wide)

    def _network(self, network: Network, number: float) -> tuple[Any, dict[str, Tensor], bool]:
        settings: dict[str, Any] = dict(network.settings)
        parts = {name: getattr(network, name) for name in ("down", "down_bias", "up", "up_bias")}
        moved = {
            n: self._moved(t if n.startswith("down") else number * t) for n, t in parts.items()
        }
        return ACT2FN[settings["non_linearity"]], moved, settings["variant"] == "parallel"

    def before(self, module: Any, given: Any, named: Any) -> Any:
        """What the module is given instead."""
        self.given = given[0] if given else next(iter(named.values()))
        if (scale := self.scales.get(True)) is not None:
            return (self._wide(self.given).mul(scale).to(self.given.dtype), *given[1:]), named
        beside = [each for each in self.added if each[2]]
        if beside and adds_input(module):
            inputs, source = given
            return (inputs, self._with(source, source, beside)), named
        return None

    def after(self, module: Any, _: Any, __: Any, output: Any) -> Any:
        """What the module gives instead."""
        given, self.given = self.given, None
        states = output[0] if isinstance(output, tuple) else output
        found = states
        if (scale := self.scales.get(False)) is not None:
            found = self._wide(found) * scale
        if self.factors is not None:
            found = self._wide(found) + self._low(module, given)
        if self.bias is not None:
            found = self._wide(found) + self.bias
        beside = [each for each in self.added if each[2] and not adds_input(module)]
        found = self._with(found, given, beside)
        found = self._with(found, found, [each for each in self.added if not each[2]])
        found = found.to(states.dtype)
        return (found, *output[1:]) if isinstance(output, tuple) else found

    def _wide(self, states: Tensor) -> Tensor:
        return states.to(self.wide)

    def _low(self, module: Any, given: Tensor) -> Tensor:
        assert self.factors is not None  # noqa: S101 - for the type checker; the caller looked
        down, up = self.factors
        if isinstance(module, nn.Embedding):
            inner = functional.embedding(given, down.T)
            return inner @ up.T * getattr(module, "embed_scale", 1.0)
        return self._wide(given) @ down.T @ up.T

    def _with(self, states: Tensor, given: Tensor, networks: list[Any]) -> Tensor:
        """The states and what networks make of what is given."""
        for bend, part, _ in networks:
            inner = bend(functional.linear(self._wide(given), part["down"], part["down_bias"]))
            states = self._wide(states) + functional.linear(inner, part["up"], part["up_bias"])
        return states


def adds_input(module: Any) -> bool:
    """Whether a module adds another input to what it computes, as the end of BERT's MLP does."""
    return BottleneckLayer.takes_residual(module)


@dataclass(slots=True)
class _Whole:
    """A parameter that changes as a whole, and by how much each term changes it."""

    parameter: Any
    own: Tensor
    changes: dict[str, Tensor] = field(default_factory=dict)

    def turn(self, numbers: Mapping[str, float]) -> None:
        """Let the parameter hold itself and every change times its number."""
        acting = [
            (n, self.changes[name]) for name, n in numbers.items() if n and name in self.changes
        ]
        total = self.own.double()
        for number, change in acting:
            total = total + number * change.to(total.device)
        self.parameter.data = total.to(self.own.dtype) if acting else self.own


class Dials:
    """The numbers that changes of a loaded model are multiplied by; see `acting`."""

    def __init__(self, model: Any, terms: Mapping[str, Delta]) -> None:
        self._model = model
        self._terms = dict(terms)
        self._sites: dict[str, _Site] = {}
        self._whole: dict[int, _Whole] = {}
        self._put_back: list[tuple[dict[str, Any], str, Any]] = []
        self._rows: list[tuple[Any, Tensor]] = []
        self._names = dict(model.named_parameters(remove_duplicate=False))
        self._modules = dict(model.named_modules())
        for name, delta in self._terms.items():
            self._place(name, delta)

    def turn(self, numbers: Mapping[str, float], brings: Delta | None = None) -> None:
        """Let each term act times its number, and those that have none not at all.

        Args:
            numbers: by term.
            brings: whose heads and rows of new tokens stand in the model; those of the base
                without.

        Raises:
            InputError: there is no such term, or the base has no place for what it brings.
        """
        if strange := [name for name in numbers if name not in self._terms]:
            raise InputError(
                f"there is no term `{strange[0]}`; there are: {', '.join(self._terms)}"
            )
        self._take_out()
        for site in self._sites.values():
            site.turn(numbers)
        for whole in self._whole.values():
            whole.turn(numbers)
        if brings is not None:
            for name, values in brings.kept.items():
                self._bring(name.removeprefix(PREFIX), values, brings)

    def _place(self, term: str, delta: Delta) -> None:
        for part in ("low", "scalings", "networks"):
            for name, change in getattr(delta, part).items():
                getattr(self._site(name), part)[term] = change
        for name, change in delta.dense.items():
            owner, _, kind = name.rpartition(".")
            if kind == "bias" and owner in delta.low:  # peft adds it to the update, not to a bias
                self._site(owner).biases[term] = change
                continue
            parameter = self._names[self._find(name, self._names)]
            whole = self._whole.setdefault(id(parameter), _Whole(parameter, parameter.data))
            whole.changes.setdefault(term, change)  # a tied weight changes once

    def _site(self, name: str) -> _Site:
        found = self._find(name, self._modules)
        if found not in self._sites:
            own = next(self._modules[found].parameters(), next(self._model.parameters()))
            wide = torch.float64 if own.dtype == torch.float64 else torch.float32
            self._sites[found] = _Site(wide, own.device)
        return self._sites[found]

    @staticmethod
    def _find(name: str, names: Mapping[str, Any]) -> str:
        if (near := nearest(name, names)) is None:
            raise InputError(
                f"the base has no `{name}`, which a term changes",
                hint="name the base that it was trained on",
            )
        return near

    def _bring(self, name: str, values: Tensor, delta: Delta) -> None:
        """Put a head, or rows of new tokens, in their place."""
        if name.endswith(TOKEN_ROWS):
            self._bring_rows(name.removesuffix(TOKEN_ROWS), values, delta)
            return
        owner, _, kind = self._find(name, self._names).rpartition(".")
        slot = self._modules[owner]._parameters
        own: Any = slot[kind]
        if own.shape != values.shape:
            raise InputError(
                f"`{name}` has shape {tuple(values.shape)}, and the base's {tuple(own.shape)}"
            )
        # The parameter itself is exchanged: its numbers may be those of a tied embedding as well.
        self._put_back.append((slot, kind, own))
        slot[kind] = nn.Parameter(values.to(own.device, own.dtype), requires_grad=False)

    def _bring_rows(self, module: str, values: Tensor, delta: Delta) -> None:
        parameter = self._names[self._find(f"{module}.weight", self._names)]
        indices = delta.facts["trainable_token_indices"]
        if isinstance(indices, dict):
            indices = next(rows for name, rows in indices.items() if module.endswith(name))
        changed = parameter.data.clone()
        changed[indices] = values.to(changed.device, changed.dtype)
        self._rows.append((parameter, parameter.data))
        parameter.data = changed

    def _take_out(self) -> None:
        while self._put_back:
            slot, kind, own = self._put_back.pop()
            slot[kind] = own
        while self._rows:
            parameter, own = self._rows.pop()
            parameter.data = own

    def hook(self) -> list[Any]:
        """Let what the numbers say act; the handles end it."""
        return [
            handle
            for name, site in self._sites.items()
            for module in [self._modules[name]]
            for handle in (
                module.register_forward_pre_hook(site.before, with_kwargs=True),
                module.register_forward_hook(site.after, with_kwargs=True),
            )
        ]

    def release(self) -> None:
        """Give every parameter back as it was."""
        self._take_out()
        for whole in self._whole.values():
            whole.parameter.data = whole.own


@contextmanager
def acting(model: Any, terms: Mapping[str, Delta]) -> Iterator[Dials]:
    """Inside, terms act on the model times the numbers that `turn` sets; at first none does.

    What the model computes equals what the adapter computes that a merge with these numbers saves,
    up to rounding. Afterwards the model is as before, bit for bit.

    Args:
        model: a plain base, with no adapter attached.
        terms: changes of it, by name.

    Raises:
        InputError: the base has no place for one of them.
    """
    dials = Dials(model, terms)
    handles = dials.hook()
    try:
        yield dials
    finally:
        for handle in handles:
            handle.remove()
        dials.release()
