"""Write the golden tensors: what mergekit and peft make of small changes.

Run it with a Python that has the versions below and not peftkit (mergekit pins what it needs):

    python3 -m venv /tmp/mergekit-venv
    /tmp/mergekit-venv/bin/pip install torch==2.13.0 mergekit==0.1.4 peft==0.21.2
    /tmp/mergekit-venv/bin/python tests/golden/merging/make.py
"""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from mergekit.merge_methods.generalized_task_arithmetic import GTATask
from mergekit.merge_methods.karcher import karcher_merge_tensors
from mergekit.merge_methods.model_stock import ModelStockMergeTask
from mergekit.merge_methods.nuslerp import nuslerp
from mergekit.merge_methods.registry import REGISTERED_MERGE_METHODS
from mergekit.merge_methods.sce import sce_merge
from mergekit.sparsify import RescaleNorm, della_magprune
from peft.utils import merge_utils
from safetensors.torch import save_file

HERE = Path(__file__).parent
WEIGHTS = [1.0, 0.7, 0.4]
SIGNED = [1.0, 0.7, -0.4]
KEEPS = [0.1, 0.2, 0.35, 0.5, 0.9]


def mergekit(
    name: str, changes: torch.Tensor, weights: list[float], keep: float, **told: float | bool
) -> torch.Tensor:
    """What a generalized task arithmetic of mergekit makes of changes of a base of zeros."""
    method = REGISTERED_MERGE_METHODS[name]
    options = {
        **{each.name: each.default_value for each in method.parameters()},
        **{each.name: each.default_value for each in method.tensor_parameters()},
        **told,
    }
    base = torch.zeros_like(changes[0])
    tensors = {"base": base, **{str(place): change for place, change in enumerate(changes)}}
    each = {
        str(place): {**options, "weight": weight, "density": keep}
        for place, weight in enumerate(weights)
    }
    task = GTATask.model_construct(
        method=method,
        tensors=None,
        base_model="base",
        weight_info=SimpleNamespace(name="layer", is_embed=False),
        tensor_parameters=SimpleNamespace(data=each),
        int8_mask=False,
        normalize=options["normalize"],
        lambda_=options["lambda"],
        rescale_norm=RescaleNorm.l1 if options["rescale"] else None,
    )
    return task.execute(tensors)


def dare(function: str, changes: torch.Tensor, drawn: torch.Tensor, keep: float) -> torch.Tensor:
    """What a DARE of peft makes of changes, with our random numbers instead of its own."""
    numbers = iter(drawn)
    with mock.patch("torch.bernoulli", lambda chances: (next(numbers) < chances).float()):
        return getattr(merge_utils, function)(list(changes), torch.tensor(SIGNED), keep)


def ties_and_kin(changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The methods that take a share to keep."""
    made = {}
    for keep in KEEPS:
        tensors = list(changes)
        made[f"ties@mergekit/{keep}"] = mergekit("ties", changes, WEIGHTS, keep)
        made[f"ties@peft/{keep}"] = merge_utils.ties(tensors, torch.tensor(SIGNED), keep)
        made[f"ties@peft-by-count/{keep}"] = merge_utils.ties(
            tensors, torch.tensor(SIGNED), keep, "frequency"
        )
        made[f"magnitude/{keep}"] = merge_utils.magnitude_prune(tensors, torch.tensor(SIGNED), keep)
        made[f"breadcrumbs/{keep}"] = mergekit("breadcrumbs", changes, SIGNED, keep, gamma=0.05)
        made[f"sce/{keep}"] = sce_merge(tensors, torch.zeros_like(changes[0]), select_topk=keep)
    return made


def by_angles(changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The methods that need inner products alone."""
    alike = changes + 2 * changes.mean(0)
    info = SimpleNamespace(name="layer", is_embed=False, optional=False)
    stock = ModelStockMergeTask.model_construct(
        gather_tensors=None, base_model="base", weight_info=info, filter_wise=False
    )
    tensors = {str(place): change for place, change in enumerate(alike)}
    return {
        "nuslerp/0.3": nuslerp(0.3, changes[0].clone(), changes[1].clone(), flatten=True),
        "karcher": karcher_merge_tensors(list(changes.double()), [0.5, 0.3, 0.2], 200, 1e-9),
        "model-stock": stock.execute({"base": torch.zeros_like(alike[0]), **tensors}),
    }


def chances_of_della(change: torch.Tensor) -> torch.Tensor:
    """The probabilities with which mergekit would keep each entry."""
    seen = []

    def look(chances: torch.Tensor) -> torch.Tensor:
        seen.append(chances)
        return torch.ones_like(chances)

    with mock.patch("torch.bernoulli", look):
        della_magprune(change, 0.5, 0.15)
    return seen[0]


def main() -> None:
    """Write the tensors and the versions that made them."""
    generator = torch.Generator().manual_seed(1)
    changes = torch.randn(3, 17, 23, generator=generator)
    drawn = torch.rand(3, 17, 23, generator=generator)
    made = {"changes": changes, "drawn": drawn, **ties_and_kin(changes), **by_angles(changes)}
    for keep in KEEPS:
        made[f"dare/{keep}"] = dare("dare_linear", changes, drawn, keep)
        made[f"dare-ties/{keep}"] = dare("dare_ties", changes, drawn, keep)
    told = {"lambda": 0.6}
    made["task-arithmetic/0.6"] = mergekit("task_arithmetic", changes, SIGNED, 1.0, **told)
    made["della-chances"] = chances_of_della(changes[0])
    whole = {name: tensor.contiguous() for name, tensor in made.items()}
    save_file(whole, HERE / "merging.safetensors")
    facts = {
        "weights": WEIGHTS,
        "signed": SIGNED,
        "keeps": KEEPS,
        "top": 0.05,
        "versions": {name: version(name) for name in ("mergekit", "peft", "torch")},
    }
    (HERE / "merging.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
