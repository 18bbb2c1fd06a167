"""However rows, batches, epochs and processes fall, a resumed run sees each row when it should."""

import random
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from peftkit.data.batch import Layout, Update, stream_updates
from peftkit.data.example import Example

pytestmark = pytest.mark.slow
CASES = 500


def make_rows(count: int, draw: random.Random) -> list[Example]:
    """Rows that are known by their tokens: row 7 says 7 a few times."""
    rows = []
    for number in range(count):
        length = draw.randint(2, 9)
        tokens, trained = np.full(length, number, np.int32), np.ones(length, bool)
        rows.append(Example(tokens, trained, f"made:{number}", str(number), str(number)))
    return rows


def seen(updates: list[Update], rows: list[Example], pad: int) -> list[Counter[int]]:
    """Which rows each update holds, counted by the tokens in its micro-batches."""
    found = []
    for update in updates:
        tokens = Counter(
            token
            for batch in update.micro_batches
            for token in batch.inputs.flatten().tolist()
            if token != pad
        )
        assert all(count % rows[token].length == 0 for token, count in tokens.items())
        found.append(Counter({t: count // rows[t].length for t, count in tokens.items()}))
    return found


def test_each_row_once_an_epoch_wherever_the_run_stopped(record_property: Any) -> None:
    right = 0
    for case in range(CASES):
        draw = random.Random(case)
        count, batch, epochs = draw.randint(1, 60), draw.randint(1, 24), draw.randint(1, 4)
        layout = Layout(draw.random() < 0.5, draw.randint(1, batch), pad_id=999)
        rows, seed = make_rows(count, draw), draw.randrange(2**31)
        steps = -(-epochs * count // batch)
        stop = draw.randint(0, steps)

        def take(start: int, end: int, parts: int) -> list[Counter[int]]:
            """What each update holds, put together from the parts of so many processes."""
            whole = [Counter[int]() for _ in range(start, end)]
            for part in range(parts):
                stream = stream_updates(
                    rows,  # noqa: B023
                    layout,  # noqa: B023
                    rows=batch,  # noqa: B023
                    seed=seed,  # noqa: B023
                    start=start,
                    part=part,
                    parts=parts,
                )
                found = seen(list(islice(stream, end - start)), rows, 999)  # noqa: B023
                whole = [one + other for one, other in zip(whole, found, strict=True)]
            return whole

        before, after = draw.randint(1, 4), draw.randint(1, 4)
        resumed = take(0, stop, before) + take(stop, steps, after)
        total = sum(resumed, Counter())
        extra = steps * batch - epochs * count
        often = Counter(total.values())
        expected = Counter({epochs + extra // count: count - extra % count})
        expected[epochs + extra // count + 1] += extra % count
        right += resumed == take(0, steps, 1) and often == +expected
    record_property("resumes that see each row once an epoch", {"cases": CASES, "right": right})
    assert right == CASES
