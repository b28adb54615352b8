"""The Lightning module, which trains the model."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric

from regen.models.soft_token_lm import SoftTokenLM
from regen.training.schedules import linear

READ_EVERY = 10  # steps between two checks on a GPU that the loss is finite, each of which waits for the GPU
Groups = list[dict[str, Any]]


class NarrativeModule(L.LightningModule):
    """Trains a model on the mean negative log-likelihood of narrative tokens.

    The loss of a step is the mean over the tokens of all processes and of all accumulated batches
    (`Trainer(accumulate_grad_batches=...)`).

    Args:
        model: Adapter and language model. For a batch it returns a summed loss and the number of summands.
        adapter_lr: Peak learning rate of the adapter and of learned positions.
        lm_lr: Peak learning rate of the LM's trainable parameters.
        optimizer: Makes the optimizer from its parameter groups, each with its learning rate.
        schedule: Makes the learning-rate schedule from the optimizer and the number of steps.
        provenance: Resolved config and library versions, saved in every checkpoint.
    """

    strict_loading = False  # checkpoints hold trained tensors only; load_trained_state checks names and shapes

    def __init__(
        self,
        model: SoftTokenLM,
        *,
        adapter_lr: float,
        lm_lr: float,
        optimizer: Callable[[Groups], torch.optim.Optimizer] = lambda groups: torch.optim.AdamW(groups, weight_decay=0),
        schedule: Callable[[torch.optim.Optimizer, int], Any] = lambda of, steps: linear(of, steps=steps),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter_lr = adapter_lr
        self.lm_lr = lm_lr
        self.optimizer = optimizer
        self.schedule = schedule
        self.provenance = dict(provenance or {})
        self.validation_loss = MeanMetric(nan_strategy=math.inf)  # other strategies drop NaN or ignore the weights
        self._window_tokens: list[Tensor] = []  # tokens of each accumulated batch
        self._first_bad: Tensor | None = None  # first step whose loss or gradient was not finite; -1 for none

    def configure_model(self) -> None:
        """Shards decoder layers, adapter and the rest over processes with `trainer=fsdp`."""
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
        """Whether the model is sharded over processes."""
        return isinstance(self.model, FSDPModule)

    def training_step(self, batch: Any, batch_idx: int) -> Float[Tensor, ""]:
        total, tokens = self.model(batch)
        tokens = self.trainer.strategy.reduce(tokens.clone(), reduce_op="sum")
        total = total * self.trainer.world_size  # because Lightning takes the mean over processes
        loss = total / tokens
        self._note(loss)
        several = self.trainer.world_size > 1
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.examples), sync_dist=several)
        if self.trainer.accumulate_grad_batches == 1:
            return loss
        self._window_tokens.append(tokens)
        return total * self.trainer.accumulate_grad_batches / self._window_tokens[0]  # see `_scale_by_window`

    def _scale_by_window(self, parameters: list[Tensor]) -> None:
        """Divides accumulated gradients by the tokens of all accumulated batches.

        `training_step` has divided each batch's loss by the tokens of the first one, and has undone Lightning's
        division by the number of batches.
        """
        if not self._window_tokens:
            return
        scale = self._window_tokens[0] / sum(self._window_tokens)
        self._window_tokens = []
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
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
        """Clips gradients by norm or by value, and records a norm that is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._scale_by_window(parameters)
        by_value = gradient_clip_algorithm == "value"
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, math.inf if by_value else gradient_clip_val or math.inf)
        if by_value and gradient_clip_val:
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        if self.trainer.precision != "16-mixed":  # whose loss scaler skips steps with gradients that are not finite
            self._note(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._first_bad is not None and (not self._first_bad.is_cuda or self.global_step % READ_EVERY == 0):
            self.refuse_not_finite()

    def refuse_not_finite(self) -> None:
        """Raises a ValueError if the loss or gradient of a step was not finite."""
        if self._first_bad is None or (step := int(self._first_bad)) < 0:
            return
        raise ValueError(
            self._not_finite(f"Loss or gradient of step {step + 1} (batch {self._batch_of(step)}) is not finite")
        )

    def _note(self, value: Tensor) -> None:
        """Records on the device, without waiting for a GPU, the first step whose value is not finite."""
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=value.device)
        bad = ~value.detach().isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self.global_step, self._first_bad)

    def _batch_of(self, step: int) -> str:
        per_epoch = max(1, math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches))
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
        optimizer = self.optimizer([group for group in groups if group["params"]])
        schedule = self.schedule(optimizer, self._planned_steps())
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _planned_steps(self) -> int:
        """Number of steps of a full run. Lightning's estimate would set up the loader before its state is restored."""
        trainer: Any = self.trainer  # its type lacks `datamodule`
        if trainer.datamodule is None or trainer.max_epochs == -1:
            return int(trainer.estimated_stepping_batches)
        batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs
        return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps

    def on_train_start(self) -> None:
        self._switch_optimizers("train")

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self._switch_optimizers("eval")

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self._switch_optimizers("train")

    def on_train_end(self) -> None:
        self._switch_optimizers("eval")

    def _switch_optimizers(self, mode: str) -> None:
        """Switches schedule-free optimizers, which train other weights than they evaluate and save."""
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.refuse_not_finite()
        checkpoint["state_dict"] = {f"model.{name}": t for name, t in self.model.trained_state().items()}
        checkpoint["provenance"] = self.provenance
        if (loss := self.trainer.callback_metrics.get("val_loss")) is not None:
            checkpoint["val_loss"] = float(loss)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.sharded:  # Lightning has loaded the shards already
            return
        self.model.load_trained_state(trained_weights(checkpoint))


def trained_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The trained tensors in a checkpoint, by their names in `NarrativeModule.model`."""
    return {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
