"""Label smoothing: a share of each target is spread evenly over all classes.

`a · (log p of the target − mean over classes of log p)` beside the cross entropy (Szegedy et al.,
2016): together the cross entropy with the smoothed target, as torch's `label_smoothing` has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def smoothing(scores: Tensor, targets: Tensor, share: float) -> Tensor:
    """What smoothing adds to the cross entropy of scores (places, classes), summed."""
    logs = scores.log_softmax(-1)
    picked = logs.gather(-1, targets[:, None])[:, 0]
    return share * (picked - logs.mean(-1)).sum()
