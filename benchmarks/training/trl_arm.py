"""The TRL arms: its `SFTTrainer`, as it comes and tuned, timed from step begin to step end.

The trainer gets ready-made rows, so its preparation is not timed; nor is its collator, which runs
before a step begins. An update is split into micro-batches by gradient accumulation.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import torch
from arm import LEARNING_RATE, MAX_GRAD_NORM, PACKED_WIDTH, PADDED_ROWS, Reading, Timed, Work
from clock import cpu_seconds
from plain import labels_of, lora_config, take_gradients, trained
from shapes import Bases, fill_adapter

from peftkit.base.load import load_tokenizer
from peftkit.base.locate import locate
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peftkit.data.example import Example

UNCLIPPED = 1e9
TUNED = {
    "gradient_checkpointing": False,
    "packing": True,
    "max_length": PACKED_WIDTH,
    "per_device_train_batch_size": 1,
}


def find_trl(folder: Path | None) -> str | None:
    """Make trl importable; why it is not, if so."""
    if folder is not None:
        sys.path.append(str(folder))
    if importlib.util.find_spec("trl") is None:
        return "trl is not installed here; `--trl FOLDER` names where it is"
    return None


class TrlArm:
    """`SFTTrainer` over rows that are already tokenized."""

    def __init__(self, bases: Bases, folder: Path, *, tuned: bool) -> None:
        from transformers import PrinterCallback
        from trl import SFTTrainer

        self._tuned = tuned
        self._watcher = _make_watcher()
        self._trainer = SFTTrainer(
            model=bases.make(torch.bfloat16 if tuned else torch.float32),
            args=_make_settings(folder, TUNED if tuned else {}),
            train_dataset=_make_rows([]),
            processing_class=load_tokenizer(locate(BaseSection(model="builtin:tiny"))),
            peft_config=lora_config(),
            callbacks=[self._watcher],
        )
        self._trainer.remove_callback(PrinterCallback)
        self.model: Any = self._trainer.model
        self.work = Work(torch.bfloat16)
        self.reset()

    def reset(self) -> None:
        """See `Arm`."""
        fill_adapter(trained(self.model))
        self._trainer.optimizer = self._trainer.lr_scheduler = None

    def read(self, documents: Sequence[Example]) -> Reading:
        """See `Arm`; not clipped, so that the gradients' size can be compared too."""
        self._watcher.keep, self._trainer.args.max_grad_norm = True, UNCLIPPED
        loss = self._train(documents)
        self._watcher.keep, self._trainer.args.max_grad_norm = False, MAX_GRAD_NORM
        self.reset()
        return Reading(loss, self._watcher.gradients)

    def step(self, documents: Sequence[Example]) -> Timed:
        """See `Arm`."""
        loss = self._train(documents)
        return Timed(self._watcher.seconds, loss)

    def _train(self, documents: Sequence[Example]) -> float:
        """One update by the trainer's own `train`, which keeps its optimizer between calls."""
        rows = _make_rows(documents)
        settings = self._trainer.args
        if self._tuned:
            from trl import pack_dataset

            rows = pack_dataset(rows, settings.max_length, settings.packing_strategy)
        self._trainer.train_dataset = rows
        batches = -(-len(rows) // settings.per_device_train_batch_size)
        settings.gradient_accumulation_steps = batches
        return float(self._trainer.train().training_loss)


def _make_settings(folder: Path, changes: dict[str, Any]) -> Any:
    """TRL's defaults, silent, one update a call at the rate that every arm has."""
    from datasets import disable_progress_bars
    from trl import SFTConfig

    disable_progress_bars()
    return SFTConfig(
        output_dir=str(folder),
        use_cpu=True,  # without it, its default of bf16 is refused here
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataset_kwargs={"skip_prepare_dataset": True},
        **({"per_device_train_batch_size": PADDED_ROWS} | changes),
    )


def _make_rows(documents: Sequence[Example]) -> Any:
    from datasets import Dataset, Features, List, Value

    columns = {
        "input_ids": [document.tokens.tolist() for document in documents] or [[1, 2]],
        "labels": [labels_of(document).tolist() for document in documents] or [[-100, 2]],
    }
    return Dataset.from_dict(columns, Features(dict.fromkeys(columns, List(Value("int64")))))


def _make_watcher() -> Any:
    """A callback that knows the CPU seconds of the last step, and the gradients it applied."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        keep = False

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = cpu_seconds()

        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            if self.keep:
                self.gradients = take_gradients(model)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = cpu_seconds() - self.started

    return Watcher()
