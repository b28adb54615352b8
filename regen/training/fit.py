"""Trains a run: from its last checkpoint to the best weights in its folder."""

import json
import logging
import pickle
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from safetensors.torch import save_file

from regen.config.objects import plain
from regen.config.schema import SHARDED
from regen.data.datamodule import NarrativeDataModule
from regen.embeddings.fusion import InteractionVectors
from regen.models.language_model import LanguageModel, hold_frozen_in_bfloat16
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.compiled import compiled_layers
from regen.runtime.costs import KEY, PeakMemory
from regen.runtime.device import described, device_of, out_of_memory_named
from regen.runtime.packed_weights import packed_weights
from regen.storage.atomic import write_atomically
from regen.training.assembly import build_data, build_model, build_module
from regen.training.callbacks import LastCheckpoint, StepClock
from regen.training.module import NarrativeModule, trained_weights
from regen.training.run import RECORD, WEIGHTS, LoadedRun, Run, is_main_process, provenance, write_record

logger = logging.getLogger(__name__)
LESS_MEMORY = (
    "Lower training.batch_size (trainer.accumulate_grad_batches keeps the size of a step) or data.max_history, or set "
    "training.gradient_checkpointing=true."
)


def fit(run: Run, vectors: InteractionVectors, loggers: Sequence[Any], callbacks: Sequence[Any] = ()) -> LoadedRun:
    """Trains a run, from its last checkpoint if there is one, and saves the best weights in its folder.

    Args:
        run: The run; its folder exists.
        vectors: The fused vectors that the adapter reads.
        loggers: Lightning loggers.
        callbacks: Lightning callbacks, in addition to those of the config.

    Raises:
        ValueError: If the last checkpoint cannot be read, memory runs out, or training ends without a step or with
            weights that are not finite.
    """
    config, last = run.config, run.last_checkpoint
    lm: LanguageModel = config.lm.build()
    data = build_data(config, run.inputs, vectors, lm, folder=run.folder)
    model = build_model(config, data, lm, start=not last.exists())
    in_bfloat16 = config.trainer.precision == "bf16-mixed"
    if in_bfloat16:
        hold_frozen_in_bfloat16(model.lm)
    module = build_module(config, model.train(), provenance={"config": plain(config), **provenance(run)})
    clock, memory = StepClock(), PeakMemory()
    trainer = _trainer(run, loggers, [clock, *callbacks])
    _train(run, trainer, module, data)
    if module.sharded or in_bfloat16:  # every process gathers its part; what follows needs a whole model in float32
        state = model.trained_state()
        model = build_model(config, data, lm, start=False)
        model.load_trained_state(state)
    if is_main_process():
        best = _best_checkpoint(trainer)
        if best:
            model.load_trained_state(trained_weights(best))
        lengths = data.splits["train"].lengths
        facts = {
            "steps": trainer.global_step,
            "seconds": round(clock.seconds, 1),
            KEY: {"positions": sum(lengths) / len(lengths), "step_ms": clock.step_ms, "memory_gib": memory.gib()},
            "device": described(trainer.strategy.root_device),
            "val_loss": best.get("val_loss"),
            "monitored": best.get("monitored"),
        }
        _save(run, model, facts)
    if config.training.gradient_checkpointing:
        model.causal_lm.activation_checkpointing_disable()
    return LoadedRun(run, lm, data, model.to(device_of(config.trainer.accelerator)).eval())


def _train(run: Run, trainer: L.Trainer, module: NarrativeModule, data: NarrativeDataModule) -> None:
    """Runs the trainer from the last checkpoint, if there is one."""
    training, lm, last = run.config.training, module.model.lm, run.last_checkpoint
    resume = last.exists()
    if resume:
        _check_readable(last)
        logger.info("resuming %s", last)
    if training.gradient_checkpointing:
        module.model.causal_lm.activation_checkpointing_enable({"use_reentrant": False})
    faster: AbstractContextManager[None] = nullcontext()
    if training.compile:
        faster = compiled_layers(module.model.decoder.layers)
    elif run.config.trainer.strategy != SHARDED:
        faster = packed_weights(lm, backward=True)
    asked = (
        f"training.batch_size={training.batch_size}, up to {max(data.splits['train'].lengths)} positions a row, "
        f"lm={run.config.lm.name} with {sum(p.numel() for p in lm.parameters()):,} parameters"
    )
    with faster, out_of_memory_named(asked, LESS_MEMORY):
        trainer.fit(module, data, ckpt_path=str(last) if resume else None, weights_only=True)
    if trainer.global_step == 0:
        limits = ", ".join(run.limits) or "trainer.max_time"
        raise ValueError(
            f"{run.folder}: training of {len(data.splits['train']):,} examples ended without a single step, so nothing "
            f"is saved or scored. Raise {limits}."
        )


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)  # reads no tensors
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is cut off"
        raise ValueError(
            f"{checkpoint}: cannot be read ({reason}). Delete it, or set force=true, to train anew."
        ) from error


def _trainer(run: Run, loggers: Sequence[Any], callbacks: Sequence[Any]) -> L.Trainer:
    settings, folder = plain(run.config.trainer), run.folder / "checkpoints"
    if settings["strategy"] == SHARDED:
        from lightning.pytorch.strategies import ModelParallelStrategy

        settings["strategy"] = ModelParallelStrategy(
            data_parallel_size=settings["devices"], tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    device = device_of(settings["accelerator"])
    if device.index and settings["devices"] == 1:
        settings["devices"] = [device.index]  # the GPU that this run of a grid got
    chosen = [node.build() for node in run.config.callbacks.values()]
    for callback in chosen:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder)
    if not loggers:
        chosen = [callback for callback in chosen if not isinstance(callback, LearningRateMonitor)]
    if not settings["enable_progress_bar"]:
        chosen = [callback for callback in chosen if not isinstance(callback, ProgressBar)]
    last = LastCheckpoint(
        folder,
        "last",
        train_time_interval=timedelta(seconds=run.config.training.checkpoint_seconds),
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return L.Trainer(
        **settings,
        use_distributed_sampler=False,
        logger=list(loggers),
        callbacks=[*chosen, *callbacks, last],
        default_root_dir=run.folder,
    )


def _best_checkpoint(trainer: Any) -> dict[str, Any]:
    """Content of the best checkpoint with the value of the monitored metric; empty if there is none."""
    for callback in trainer.checkpoint_callbacks:
        path = Path(callback.best_model_path)
        if callback.monitor is not None and path.is_file():
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return found | {"monitored": float(callback.best_model_score)}
    return {}


def _save(run: Run, model: SoftTokenLM, facts: Mapping[str, Any]) -> None:
    """Saves the trained weights, adds `facts` to the run's record and removes the checkpoints."""
    state = {name: tensor.contiguous() for name, tensor in model.trained_state().items()}
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{run.folder}: {len(bad)} of {len(state)} trained tensors are not finite, the first is {bad[0]}. Nothing "
            f"is saved. Lower adapter.lr={run.config.adapter.lr} and tuning.lr={run.config.tuning.lr}."
        )
    record = {**json.loads((run.folder / RECORD).read_text()), **facts}
    record["trained_parameters"] = sum(tensor.numel() for tensor in state.values())
    write_record(run, record)
    metadata = {"config": json.dumps(plain(run.config)), "versions": json.dumps(record["versions"])}
    write_atomically(run.folder / WEIGHTS, lambda path: save_file(state, path, metadata=metadata))
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
