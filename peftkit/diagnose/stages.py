"""Whether a later stage took back what an earlier one had learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.diagnose.checks import FORGETTING
from peftkit.diagnose.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def check_stages(losses: Mapping[str, Mapping[str, float | None]]) -> Iterator[Finding]:
    """For each stage but the last, how its loss stands at the end to that when it ended.

    `losses` are by set, which is called after its stage, and then by what was measured on it: the
    base and each stage, in their order.
    """
    for name, by_stage in losses.items():
        order = list(by_stage)
        later = [each for each in order[order.index(name) + 1 :] if by_stage[each] is not None]
        own, last = by_stage[name], by_stage[later[-1]] if later else None
        if own is None or last is None:
            continue
        rise = last - own
        sentence = (
            f"after `{later[-1]}` the loss on the validation rows of `{name}` was {last:.3f}, "
            f"{rise:+.3f} from where `{name}` had left it"
        )
        if rise <= FORGETTING:
            yield Finding("stage-forgetting", "ok", rise, FORGETTING, sentence)
            continue
        yield Finding(
            "stage-forgetting",
            "warning" if rise <= 5 * FORGETTING else "problem",
            rise,
            FORGETTING,
            sentence,
            f"mix rows of `{name}` into `{later[-1]}` with `data.replay`, or lower its "
            "`train.learning_rate`",
        )
