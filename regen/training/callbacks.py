"""What watches a training run: its time, and the checkpoints from which a killed one goes on."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class StepClock(L.Callback):
    """Times training steps, without validation and checkpoints, and the whole run; both over interruptions."""

    def __init__(self) -> None:
        self.step_seconds, self.steps = 0.0, 0
        self._earlier = 0.0  # seconds of attempts that were interrupted
        self._began = self._started = time.perf_counter()

    @property
    def step_ms(self) -> float:
        """Mean time of a step in milliseconds."""
        return 1000 * self.step_seconds / max(1, self.steps)

    @property
    def seconds(self) -> float:
        """Of this attempt and of the earlier ones up to their last checkpoint."""
        return self._earlier + time.perf_counter() - self._began

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step_seconds += time.perf_counter() - self._started
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step_seconds": self.step_seconds, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step_seconds, self.steps = state_dict["step_seconds"], state_dict["steps"]
        self._earlier = state_dict["seconds"]


class LastCheckpoint(ModelCheckpoint):
    """Saves where to go on, by time: after a step, and if a validation is due after it, after that validation.

    A checkpoint between a step and its validation would skip it: Lightning goes on with the next step. One between two
    batches of a step would lose the gradients of the first.
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
