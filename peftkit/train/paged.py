"""AdamW whose moments a GPU that runs out of memory moves to the host, page by page.

bitsandbytes has the kernel and the pages (CUDA's managed memory), and its own optimizer is left
out: that one names its state otherwise, so a checkpoint would fit it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

SMALLEST = 100_000
"""Values below which a moment stays on the device: a page table would cost more than it saves."""


class PagedAdamW(torch.optim.Optimizer):
    """AdamW in 32 bits with the state that torch's has, by the same names.

    On a CPU there are no pages, and it is AdamW all the same.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": 1e-8, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for leaf in group["params"]:
                if leaf.grad is not None:
                    self._update(group, leaf)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # until then the host must not read pages
        return loss

    def _update(self, group: dict[str, Any], leaf: Tensor) -> None:
        from bitsandbytes.functional import optimizer_update_32bit, prefetch_tensor

        state = self.state[leaf]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = moment_like(leaf), moment_like(leaf)
        for name in ("exp_avg", "exp_avg_sq"):
            if getattr(state[name], "is_paged", False):
                prefetch_tensor(state[name])
        state["step"] += 1
        optimizer_update_32bit(
            "adam",
            cast("Tensor", leaf.grad),
            leaf,
            state["exp_avg"],
            group["betas"][0],
            group["eps"],
            int(state["step"]),
            group["lr"],
            state2=state["exp_avg_sq"],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
        )


def moment_like(leaf: Tensor) -> Tensor:
    """Zeros shaped like a parameter: in pages where it is on a GPU and not small."""
    if leaf.device.type != "cuda" or leaf.numel() < SMALLEST:
        return torch.zeros_like(leaf, dtype=torch.float32)
    from bitsandbytes import functional

    untyped: Any = functional
    moment: Tensor = untyped.get_paged(*leaf.shape, dtype=torch.float32, device=leaf.device)
    untyped.fill(moment, 0)
    torch.cuda.synchronize()
    return moment
