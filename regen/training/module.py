"""Wiring between the narrator model and Lightning; no mathematics of its own."""

import time
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torchmetrics import MeanMetric

from regen.data.batch import Batch
from regen.models.soft_token_lm import SoftTokenLM


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
        self.validation_loss = MeanMetric()

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
        several = self.trainer.world_size > 1  # the mean over processes is then the loss of the whole batch
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.examples), sync_dist=several)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, tokens = self.model(batch)
        self.validation_loss.update(loss / tokens, weight=tokens)

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.validation_loss.compute(), prog_bar=True)
        self.validation_loss.reset()

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
        checkpoint["state_dict"] = {f"model.{name}": t for name, t in self.model.trained_state().items()}
        checkpoint["provenance"] = self.provenance

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.sharded:  # Lightning has put each part in its place by then
            return
        state = checkpoint["state_dict"]
        self.model.load_trained_state({name.removeprefix("model."): t for name, t in state.items()})


class StepClock(L.Callback):
    """Times training steps, without validation and checkpoints."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._started = 0.0

    @property
    def step_ms(self) -> float:
        """Mean time of a step in milliseconds."""
        return 1000 * self.seconds / max(1, self.steps)

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started
        self.steps += 1
