"""The other way to unlearn: train the base itself to do worse on the domain, until it does."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from judging import kept

if TYPE_CHECKING:
    from judging import Judge

ROWS = 8


def ascend(
    judge: Judge, domain: str, aim: float, *, seed: int, rate: float, steps: int
) -> dict[str, Any]:
    """Train all weights up the loss, and see what became of the control.

    Once where the loss is up by `aim`, and once after as many steps as a run has. The model is
    given back as it was.
    """
    model = judge.target.model
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    examples = judge.training_rows(domain)
    chance = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    found: dict[str, Any] = {"rate": rate}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for step in range(1, steps + 1):
        loss = _loss(model, chance.sample(examples, ROWS), judge.target.base.pad_id)
        optimizer.zero_grad()
        (-loss).backward()
        optimizer.step()
        if "matched" not in found and judge.rise(domain, "search") >= aim:
            found["matched"] = _look(judge, domain, step)
    found["end"] = _look(judge, domain, steps)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.load_state_dict(before)
    return found


def _look(judge: Judge, domain: str, step: int) -> dict[str, Any]:
    target, control = judge.rise(domain), judge.rise("stories")
    return {
        "step": step,
        "target_rise": target,
        "control_rise": control,
        "control_kept": kept(control),
    }


def _loss(model: Any, rows: list[list[int]], pad: int) -> torch.Tensor:
    longest = max(map(len, rows))
    padded = [[*row, *[pad] * (longest - len(row))] for row in rows]
    tokens = torch.tensor(padded, dtype=torch.long)
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = tokens.masked_fill(real == 0, -100)
    found: torch.Tensor = model(tokens, attention_mask=real, labels=labels).loss
    return found
