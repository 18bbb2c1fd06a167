"""What is hidden from a masked language model, and which labels a task has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.batch import Layout, collate_task, make_update
from peftkit.data.example import IGNORED, Example
from peftkit.data.task import Task, count_hidden, describe_task, hide, settle_labels
from peftkit.errors import InputError

MASKED = Task("masked-lm", mask_id=3, vocabulary=50)


def text(length: int, number: int = 0) -> Example:
    """A text between two special tokens, which never carry loss."""
    tokens = np.concatenate([[1], np.arange(length) % 40 + 5, [2]]).astype(np.int32)
    trained = np.array([False, *[True] * length, False])
    return Example(tokens, trained, f"f:{number}", f"{number:064x}", "text")


def labelled(*labels: str) -> Example:
    one = text(3)
    return Example(one.tokens, one.trained, "f:7", "d", "text", labels=labels)


@given(st.integers(1, 200), st.integers(0, 2**32))
def test_a_share_of_the_text_is_hidden_and_no_special_token(length: int, draw: int) -> None:
    example = text(length)
    shown, goal = hide(example, MASKED, (draw,))
    assert goal.sum() == count_hidden(length) == MASKED.count(example) >= 1
    assert not (goal & ~example.trained).any()
    assert (shown[~goal] == example.tokens[~goal]).all()
    again = hide(example, MASKED, (draw,))
    assert (again[0] == shown).all()


def test_most_hidden_tokens_are_masked_some_kept_and_some_swapped() -> None:
    example = text(2000)
    shown, goal = hide(example, MASKED, (5,))
    masked = (shown[goal] == 3).mean()
    kept = (shown[goal] == example.tokens[goal]).mean()
    assert 0.72 < masked < 0.88
    assert 0.05 < kept < 0.17
    assert not (hide(example, MASKED, (6,))[1] == goal).all()


def test_what_is_hidden_does_not_depend_on_micro_batches_or_processes() -> None:
    texts = [text(9 + number, number) for number in range(6)]
    draws = [(1, number) for number in range(6)]

    def seen(micro: int, parts: int) -> list[tuple[str, list[int]]]:
        layout = Layout(False, micro, 0, task=MASKED)
        found = []
        for part in range(parts):
            update = make_update(texts, layout, part=part, parts=parts, draws=draws)
            for batch in update.micro_batches:
                for row, (document,) in enumerate(batch.documents):
                    targets = batch.targets[row, : document.length].tolist()
                    found.append((document.where, targets))
        return sorted(found)

    assert seen(6, 1) == seen(1, 1) == seen(2, 3)
    whole = make_update(texts, Layout(False, 6, 0, task=MASKED), draws=draws)
    targets = [number for _, row in seen(6, 1) for number in row if number != IGNORED]
    assert whole.trained_tokens == len(targets) == sum(map(MASKED.count, texts))


def test_evaluation_hides_the_same_tokens_every_time() -> None:
    first, again = (collate_task([text(9), text(7, 1)], MASKED, 0) for _ in range(2))
    assert (first.inputs == again.inputs).all()
    assert (first.targets == again.targets).all()


def test_a_tokenizer_without_a_mask_is_told(tokenizer: object) -> None:
    with pytest.raises(InputError, match="has no mask token"):
        describe_task("masked-lm", tokenizer)


def test_labels_are_sorted_numbers_by_size() -> None:
    rows = [labelled(each) for each in ("10", "9", "b", "a")]
    assert settle_labels("auto", rows, []) == ("9", "10", "a", "b")
    assert settle_labels(("b", "a", "9", "10"), rows, rows) == ("b", "a", "9", "10")


def test_a_label_that_only_held_out_rows_have_is_refused() -> None:
    with pytest.raises(InputError, match="f:7: no training row has the label `c`") as refusal:
        settle_labels("auto", [labelled("a"), labelled("b")], [labelled("c")])
    assert "base.labels: [a, b, c]" in str(refusal.value.hint)
    assert settle_labels(("a", "b", "c"), [labelled("a")], [labelled("c")]) == ("a", "b", "c")


def test_a_single_label_leaves_nothing_to_tell_apart() -> None:
    with pytest.raises(InputError, match=r"1 label\(s\), `a`"):
        settle_labels("auto", [labelled("a")], [])
