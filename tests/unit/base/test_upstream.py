"""Noise of other libraries is kept out, and nothing else is."""

import warnings

import pytest
from transformers.utils import logging

from peftkit.base.upstream import quiet


@pytest.mark.parametrize(
    "noise",
    [
        "`is_gradient_checkpointing` is deprecated and will go",
        "Model has `tie_word_embeddings=True` and a tied layer is adapted",
    ],
)
def test_meaningless_warnings_are_not_shown(noise: str) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn(noise, stacklevel=1)
    assert not shown


def test_other_warnings_are_shown() -> None:
    with pytest.warns(UserWarning, match="something that matters"), quiet():
        warnings.warn("something that matters", stacklevel=1)


def test_progress_bars_come_back() -> None:
    assert logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
        with quiet():
            pass
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert logging.is_progress_bar_enabled()
