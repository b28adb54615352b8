"""Wiring between the narrator model and Lightning; no mathematics of its own."""

import math
import time
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric

from regen.data.batch import Batch
from regen.models.soft_token_lm import SoftTokenLM

READ_EVERY = 10  # steps after which a GPU is waited for, to read the loss


class NarrativeModule(L.LightningModule):
    """Trains a narrator model by the mean negative log-likelihood of narrative tokens.

    Args:
        model: Adapter and language model.
        adapter_lr: Peak learning rate of the adapter (and of learned positions).
        lm_lr: Peak learning rate of what trains in the LM.
        weight_decay: Of AdamW.
        warmup_share: Share of the steps in which both rates rise; they fall linearly to zero afterwards.
        provenance: Resolved config and library versions, kept in every checkpoint.
    """

    strict_loading = False  # checkpoints hold what was trained; load_trained_state checks names and shapes instead

    def __init__(
        self,
        model: SoftTokenLM,
        *,
        adapter_lr: float,
        lm_lr: float,
        weight_decay: float,
        warmup_share: float,
        provenance: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter_lr = adapter_lr
        self.lm_lr = lm_lr
        self.weight_decay = weight_decay
        self.warmup_share = warmup_share
        self.provenance = provenance
        self.validation_loss = MeanMetric(nan_strategy=math.inf)  # its other strategies drop NaN or ignore the weights
        self._first_bad: Tensor | None = None  # step at which loss or gradient was first not finite, -1 for none

    def configure_model(self) -> None:
        """Under `trainer=fsdp` each process keeps its part of every decoder layer, of the adapter and of the rest."""
        if self._device_mesh is None or self.sharded:
            return
        mesh: Any = self._device_mesh["data_parallel"]
        for layer in self.model.decoder.layers:
            fully_shard(layer, mesh=mesh)
        if self.model.adapter is not None:
            fully_shard(self.model.adapter, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the model only."""
        return isinstance(self.model, FSDPModule)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        loss, tokens = self.model(batch)
        loss = loss * self.trainer.world_size / self.trainer.strategy.reduce(tokens.clone(), reduce_op="sum")
        self._note(loss)
        several = self.trainer.world_size > 1  # the mean over processes is then the loss of the whole batch
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.examples), sync_dist=several)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, tokens = self.model(batch)
        self.validation_loss.update(loss / tokens, weight=tokens)

    def on_validation_epoch_end(self) -> None:
        self.refuse_not_finite()
        loss = self.validation_loss.compute()
        self.validation_loss.reset()
        if not loss.isfinite():
            raise ValueError(self._not_finite(f"The validation loss after step {self.global_step} is {float(loss)}"))
        self.log("val_loss", loss, prog_bar=True)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the norm of all gradients, and notes a norm that is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)
        if self.trainer.precision != "16-mixed":  # its loss scaler skips steps whose gradients are not finite
            self._note(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self._first_bad is not None and (not self._first_bad.is_cuda or self.global_step % READ_EVERY == 0):
            self.refuse_not_finite()

    def refuse_not_finite(self) -> None:
        """Ends a run whose loss or gradient was not finite.

        Raises:
            ValueError: Names the first such step.
        """
        if self._first_bad is None or (step := int(self._first_bad)) < 0:
            return
        raise ValueError(
            self._not_finite(f"Loss or gradient of step {step + 1} (batch {self._batch_of(step)}) is not finite")
        )

    def _note(self, value: Tensor) -> None:
        """Keeps the first step with a value that is not finite, on the device: a GPU is not waited for."""
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=value.device)
        bad = ~value.detach().isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self.global_step, self._first_bad)

    def _batch_of(self, step: int) -> str:
        per_epoch = max(1, int(self.trainer.num_training_batches))
        return f"{step % per_epoch + 1} of {per_epoch} in epoch {step // per_epoch + 1}"

    def _not_finite(self, what: str) -> str:
        last_good = self.global_step if self._first_bad is None or int(self._first_bad) < 0 else int(self._first_bad)
        return (
            f"{what}; adapter.lr={self.adapter_lr}, tuning.lr={self.lm_lr}, "
            f"trainer.precision={self.trainer.precision}, last good step {last_good}. Nothing is saved or scored. "
            "Lower the rates, or use trainer.precision=32-true."
        )

    def configure_optimizers(self) -> Any:
        lm = [p for p in self.model.lm.parameters() if p.requires_grad]
        ids = {id(p) for p in lm}
        adapter = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ids]
        groups = [{"params": adapter, "lr": self.adapter_lr}, {"params": lm, "lr": self.lm_lr}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=self.weight_decay)
        steps = self._planned_steps()
        warmup = max(1, round(self.warmup_share * steps))

        def share_of_peak(step: int) -> float:
            return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup), 1.0)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _planned_steps(self) -> int:
        """Steps of a full run; Lightning's estimate would set up the loader before its state is restored."""
        trainer: Any = self.trainer  # whose type does not know of the data module it holds
        steps = int(len(trainer.datamodule.train_dataloader()) * trainer.max_epochs)
        return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.refuse_not_finite()
        checkpoint["state_dict"] = {f"model.{name}": t for name, t in self.model.trained_state().items()}
        checkpoint["provenance"] = self.provenance

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.sharded:  # Lightning has put each part in its place by then
            return
        state = checkpoint["state_dict"]
        self.model.load_trained_state({name.removeprefix("model."): t for name, t in state.items()})


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
    """Saves where to go on, by time. If a validation is due after a step, it saves after that validation.

    A checkpoint between a step and its validation would skip it: Lightning goes on with the next step.
    """

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.val_check_batch:
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        super().on_train_batch_end(trainer, module, None, None, 0)
