"""Bottleneck adapters as a method of peft: registered under `BOTTLENECK`, saved and loaded as LoRA.

peft has none. Its list of methods is an enumeration that takes no new member by itself, so one is
added by hand; the rest is peft's own way of declaring a method. A stock peft that has never seen
this module stops at such an adapter with `KeyError: 'BOTTLENECK'`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.peft_types import PeftType, register_peft_method
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from torch import Tensor

NAME, PREFIX = "bottleneck", "bottleneck_"
NOT_LINEAR = (
    "a bottleneck adapter is not linear: there are no weights of the base that do the same, so it "
    "can be neither merged nor folded"
)


def _add_type(name: str) -> Any:
    """The member of peft's list of methods called `name`, which is added if it is not there."""
    kinds: Any = PeftType
    if name not in kinds.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        kinds._member_names_.append(name)
        kinds._member_map_[name] = kinds._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)  # the enumeration's own would refuse
    return kinds(name)


TYPE = _add_type(NAME.upper())


@dataclass
class BottleneckConfig(PeftConfig):
    """What `adapter_config.json` says of a bottleneck adapter."""

    bottleneck_size: int | None = None
    """Width of the bottleneck; null divides the outputs of each module by `reduction_factor`."""
    reduction_factor: int = 16
    non_linearity: str = "gelu"
    variant: str = "pfeiffer"
    """`houlsby` and `pfeiffer` take what a module gives, `parallel` what it is given."""
    scaling: float = 1.0
    dropout: float = 0.0
    target_modules: Any = None
    exclude_modules: Any = None
    modules_to_save: list[str] | None = None
    layers_to_transform: Any = None
    layers_pattern: Any = None
    fan_in_fan_out: bool = False
    """Whether the base's weights lie as (in, out); for those who check shapes, not for peft."""
    init_weights: bool = field(default=True)
    """Whether a fresh adapter changes nothing."""

    def __post_init__(self) -> None:
        """Say which method this is, in the form that peft compares names with."""
        super().__post_init__()  # type: ignore[no-untyped-call]  # peft's
        self.peft_type = TYPE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module of the base, and what the active adapters add to what it gives."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "scaling", "activation", "parallel")
    residual = "input_tensor"
    """What the end of an MLP in BERT and its kin calls the MLP's input, which it adds at last."""

    def __init__(self, base_layer: Any, name: str, config: Any, *, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.adds_input = self.takes_residual(base_layer)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.activation: dict[str, Any] = {}
        self.parallel: dict[str, bool] = {}
        self._disable_adapters = False
        self._active_adapter = name
        self.merged_adapters = []
        self.update_layer(name, config)

    @classmethod
    def takes_residual(cls, module: Any) -> bool:
        """Whether a module is the end of such an MLP."""
        return cls.residual in inspect.signature(module.forward).parameters

    def update_layer(self, name: str, config: Any) -> None:
        """Put one more adapter on the module."""
        size = config.bottleneck_size or max(1, self.width // config.reduction_factor)
        down, up = nn.Linear(self.width, size), nn.Linear(size, self.width)
        if config.init_weights:
            for zero in (down.bias, up.weight, up.bias):
                nn.init.zeros_(zero)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.bottleneck_dropout[name] = nn.Dropout(config.dropout)
        self.scaling[name] = config.scaling
        self.activation[name] = ACT2FN[config.non_linearity]
        self.parallel[name] = config.variant == "parallel"
        place = next(self.get_base_layer().parameters()).device
        self._move_adapter_to_device_of_base_layer(name, place)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *given: Any, **settings: Any) -> Any:
        """What the module gives, and what each active adapter makes of it or of its input."""
        active = [name for name in self.active_adapters if name in self.bottleneck_down]
        if self.disable_adapters or not active:
            return self.base_layer(*given, **settings)
        beside = [name for name in active if self.parallel[name]]
        after = [name for name in active if not self.parallel[name]]
        inputs = given[0] if given else settings["hidden_states"]
        if self.adds_input:
            inputs, source = given
            given, beside = (inputs, self._add(source, beside, source)), []
        output = self.base_layer(*given, **settings)
        states = output[0] if isinstance(output, tuple) else output
        changed = self._add(self._add(states, beside, inputs), after, states)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _add(self, states: Tensor, names: list[str], inputs: Tensor) -> Tensor:
        """The states and what some adapters make of the inputs."""
        for name in names:
            states = states + self._pass_through(name, inputs).to(states.dtype)
        return states

    def _pass_through(self, name: str, states: Tensor) -> Tensor:
        down: Any = self.bottleneck_down[name]
        up = self.bottleneck_up[name]
        inner = self._cast_input_dtype(states, down.weight.dtype)
        inner = self.activation[name](down(self.bottleneck_dropout[name](inner)))
        found: Tensor = up(inner) * self.scaling[name]
        return found

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, FBT001, FBT002 - peft's signature
        """Never done.

        Raises:
            ValueError: always, with the reason.
        """
        raise ValueError(NOT_LINEAR)

    def unmerge(self) -> None:
        """Nothing, because nothing is ever merged."""


class BottleneckModel(BaseTuner):
    """Puts bottleneck adapters on the modules that the configuration names."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - as peft declares it

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del current_key, parameter_name
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        width = _outputs(target) or int(self.model.config.get_text_config().hidden_size)
        layer = BottleneckLayer(target, adapter_name, peft_config, width=width)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(requires_grad=False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_LINEAR)


def _outputs(module: Any) -> int | None:
    """Outputs of a linear layer; None for a whole MLP, which gives as many as it is given."""
    if isinstance(module, Conv1D):
        return int(module.nf)
    return module.out_features if isinstance(module, nn.Linear) else None


register_peft_method(
    name=NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel, prefix=PREFIX
)
