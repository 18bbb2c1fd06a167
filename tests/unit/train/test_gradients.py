"""Gradient norms by block are those of the gradients before they were scaled down."""

import torch
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from peftkit.train.gradients import group_by_block, norms_of


def parameters() -> dict[str, Parameter]:
    names = (
        "model.layers.0.q.weight",
        "model.layers.0.q.bias",
        "model.layers.1.q.weight",
        "head.w",
    )
    generator = torch.Generator().manual_seed(0)
    made = {name: Parameter(torch.zeros(4, 3)) for name in names}
    for parameter in made.values():
        parameter.grad = torch.randn(4, 3, generator=generator)
    return made


def test_norms_of_blocks_survive_clipping() -> None:
    own = parameters()
    blocks = group_by_block(own)
    assert list(blocks) == ["layers.0", "layers.1", "outside"]
    expected = {
        name: float(torch.cat([p.grad.flatten() for p in group if p.grad is not None]).norm())
        for name, group in blocks.items()
    }
    whole = float(clip_grad_norm_(own.values(), 0.1))
    for name, norm in norms_of(blocks, whole).items():
        assert abs(norm - expected[name]) < 1e-3, name


def test_without_gradients_all_norms_are_zero() -> None:
    own = parameters()
    for parameter in own.values():
        parameter.grad = torch.zeros(4, 3)
    assert set(norms_of(group_by_block(own), 0.0).values()) == {0.0}
