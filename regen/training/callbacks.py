"""Callbacks that measure the time of a training run and save checkpoints to resume from."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class StepClock(L.Callback):
    """Times the training steps, without validation and checkpoints, and the whole run, including interrupted attempts.

    On a GPU the times come from CUDA events, so that a step does not wait for the GPU.
    """

    def __init__(self) -> None:
        self._step_seconds, self.steps = 0.0, 0
        self._events: list[tuple[Any, Any]] = []  # begin and end of steps on a GPU, not added up yet
        self._began_step: Any = None
        self._earlier = 0.0  # seconds of interrupted attempts
        self._began = time.perf_counter()

    @property
    def step_ms(self) -> float:
        """Mean time of a step in milliseconds."""
        return 1000 * self.step_seconds / max(1, self.steps)

    @property
    def step_seconds(self) -> float:
        """Seconds of all steps; waits for a GPU."""
        self._add_up()
        return self._step_seconds

    def _add_up(self) -> None:
        for begin, end in self._events:
            end.synchronize()
            self._step_seconds += begin.elapsed_time(end) / 1000
        self._events = []

    @property
    def seconds(self) -> float:
        """Seconds of this attempt and of earlier ones up to their last checkpoint."""
        return self._earlier + time.perf_counter() - self._began

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._began_step = _event() if trainer.strategy.root_device.type == "cuda" else time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        if isinstance(self._began_step, float):
            self._step_seconds += time.perf_counter() - self._began_step
        else:
            self._events.append((self._began_step, _event()))
        self.steps += 1

    def on_validation_start(self, *_: Any) -> None:
        self._add_up()  # validation waits for the GPU anyway

    def state_dict(self) -> dict[str, Any]:
        return {"step_seconds": self.step_seconds, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step_seconds, self.steps = state_dict["step_seconds"], state_dict["steps"]
        self._earlier = state_dict["seconds"]


def _event() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class LastCheckpoint(ModelCheckpoint):
    """Saves a checkpoint to resume from, by time, after an optimizer step and the validation that is due after it.

    A run that resumes from a checkpoint between a step and its validation would skip the validation. A checkpoint
    between two accumulated batches would lose the gradients of the first.
    """

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.val_check_batch:
            self._save_after_step(trainer, module, batch_idx)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._save_after_step(trainer, module, trainer.fit_loop.epoch_loop.batch_idx)

    def _save_after_step(self, trainer: Any, module: Any, batch_idx: int) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches:
            super().on_train_batch_end(trainer, module, None, None, 0)
