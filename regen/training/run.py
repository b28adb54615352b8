"""A training run: a folder that holds all it takes to go on, to evaluate, and to train again.

A run is an artefact: the same resolved config on the same data is the same folder, so a command given again resumes an
interrupted run and reuses a finished one.
"""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from regen.config.objects import plain, read_run_config
from regen.config.schema import SHARDED, TrainConfig
from regen.data.datamodule import NarrativeDataModule
from regen.data.splits import described
from regen.embeddings.fusion import InteractionVectors
from regen.embeddings.parts import TEXT
from regen.models.language_model import LanguageModel, hold_frozen_in_bfloat16
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.costs import KEY, TRAINED, PeakMemory
from regen.runtime.device import described as described_device
from regen.runtime.device import device_of, out_of_memory_named
from regen.runtime.packed_weights import packed_weights
from regen.storage import identity
from regen.storage.artefacts import fingerprint, installed_versions, write_atomically
from regen.storage.identity import Inputs
from regen.training.assembly import build_data, build_model, build_module, library_versions

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
RECORD = TRAINED  # inputs, versions, and what training found
LESS_MEMORY = (
    "Lower training.batch_size (trainer.accumulate_grad_batches keeps the size of a step) or data.max_history, or set "
    "training.gradient_checkpointing=true."
)
LIMITS = ("fast_dev_run", "limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


@dataclass(frozen=True)
class Run:
    """One cell of a grid on disk.

    Attributes:
        folder: Holds config, checkpoints or trained weights, logs, predictions and scores.
        config: The resolved config.
        inputs: The artefacts it reads.
    """

    folder: Path
    config: TrainConfig
    inputs: Inputs

    @property
    def finished(self) -> bool:
        """Whether the trained weights are there, of a whole run."""
        return (self.folder / WEIGHTS).is_file() and not self.limits

    @property
    def limits(self) -> list[str]:
        """Settings with which it sees a part of the data only, for debugging; it is then never taken for finished."""
        values = {name: getattr(self.config.trainer, name) for name in LIMITS}
        set_to = {name: value for name, value in values.items() if value or (value == 0 and name.startswith("limit_"))}
        return [f"trainer.{name}={value}" for name, value in set_to.items() if repr(value) != "1.0"]

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


@dataclass(frozen=True)
class LoadedRun:
    """A run in memory, ready to generate."""

    run: Run
    lm: LanguageModel
    data: NarrativeDataModule
    model: SoftTokenLM


def make_folder(config: TrainConfig, inputs: Inputs, weights: Mapping[str, str]) -> Run:
    """The run of a config, its folder with config and record in it.

    Args:
        config: The run's config, with its number of epochs.
        inputs: The artefacts that it reads.
        weights: Of the LM before training, see `identity.lm_weights`.
    """
    run = Run(folder_of(config, inputs.fingerprints(), weights), config, inputs)
    if is_main_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        write_atomically(run.folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
        if not (run.folder / RECORD).is_file():  # what training adds to it stays
            _write_record(run, _made_from(run))
    return run


def folder_of(config: TrainConfig, inputs: Mapping[str, str], weights: Mapping[str, str]) -> Path:
    """Where a run lies. `inputs` are fingerprints by name; the other arguments are those of `make_folder`."""
    versions = installed_versions(identity.LIBRARIES)
    recipe = identity.run(plain(config), inputs=inputs, weights=weights, versions=versions)
    return Path(config.paths.runs_dir) / f"{_label(config)}-{fingerprint(recipe)}"


def _label(config: TrainConfig) -> str:
    """What a person reads in the name of a run's folder."""
    features = sorted(config.feature)
    parts = ["+".join(features) if len(features) <= 2 else f"{len(features)}_features", config.encoder.name]
    if config.encoder.name != TEXT:
        parts.append(config.adapter.name)
    return "-".join([*parts, config.lm.name, config.tuning.name, f"seed{config.seed}"])


def _made_from(run: Run) -> dict[str, Any]:
    """What a run's record says from the beginning."""
    return {
        "inputs": run.inputs.fingerprints(),
        "weights": identity.lm_weights(run.config.lm.node),
        "versions": library_versions(),
        "split": described(run.config.split),
        "limits": run.limits,
    }


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Lets one process at a time work on a run; ranks of one job share their main process's lock."""
    if not is_main_process():
        yield
        return
    locks = run.folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{run.folder.name}.lock"):
        yield


def fit(run: Run, vectors: InteractionVectors, loggers: Sequence[Any], callbacks: Sequence[Any] = ()) -> LoadedRun:
    """Trains a run, from its last checkpoint where there is one, and leaves the best weights in its folder.

    Args:
        run: The run; its folder exists.
        vectors: What enters the adapter.
        loggers: Lightning's.
        callbacks: More of them than the config names.

    Raises:
        ValueError: If the last checkpoint cannot be read.
    """
    from regen.training.callbacks import StepClock

    config, last = run.config, run.last_checkpoint
    lm: LanguageModel = config.lm.build()
    data = build_data(config, run.inputs, vectors, lm)
    model = build_model(config, data, lm, start=not last.exists())
    narrow = config.trainer.precision == "bf16-mixed"
    if narrow:
        hold_frozen_in_bfloat16(model.lm)
    module = build_module(config, model.train(), provenance={"config": plain(config), **_made_from(run)})
    clock, memory = StepClock(), PeakMemory()
    trainer = _trainer(run, loggers, [clock, *callbacks])
    if last.exists():
        _check_readable(last)
        logger.info("resuming %s", last)
    if config.training.gradient_checkpointing:
        model.causal_lm.activation_checkpointing_enable({"use_reentrant": False})
    packed = packed_weights(model.lm, backward=True) if config.trainer.strategy != SHARDED else nullcontext()
    asked = (
        f"training.batch_size={config.training.batch_size}, up to {max(data.splits['train'].lengths)} positions a row, "
        f"lm={lm.name} with {sum(p.numel() for p in model.lm.parameters()):,} parameters"
    )
    with packed, out_of_memory_named(asked, LESS_MEMORY):
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if trainer.global_step == 0:
        limits = ", ".join(run.limits) or "trainer.max_time"
        raise ValueError(
            f"{run.folder}: training of {len(data.splits['train']):,} examples ended without a single step, so nothing "
            f"is saved or scored. Raise {limits}."
        )
    if module.sharded or narrow:  # every process gives its part; what follows wants one model in float32
        state = model.trained_state()
        model = build_model(config, data, lm, start=False)
        model.load_trained_state(state)
    found = _best_checkpoint(trainer)
    if is_main_process() and found:
        model.load_trained_state({name.removeprefix("model."): t for name, t in found["state_dict"].items()})
    if is_main_process():
        lengths = data.splits["train"].lengths
        costs = {
            "positions": sum(lengths) / len(lengths),
            "step_ms": clock.step_ms,
            "memory_gib": memory.gib(),
        }
        device = described_device(trainer.strategy.root_device)
        facts = {"steps": trainer.global_step, "seconds": round(clock.seconds, 1), KEY: costs, "device": device}
        facts |= {"val_loss": found.get("val_loss"), "monitored": found.get("monitored")}
        _save(run, model, facts)
    if config.training.gradient_checkpointing:
        model.causal_lm.activation_checkpointing_disable()
    return LoadedRun(run, lm, data, model.to(device_of(config.trainer.accelerator)).eval())


def load(run: Run, vectors: InteractionVectors) -> LoadedRun:
    """A finished run with its trained weights.

    Raises:
        ValueError: If the weights are damaged or belong to another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run.folder / WEIGHTS
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Train the run anew with force=true.") from error
    lm: LanguageModel = run.config.lm.build()
    data = build_data(run.config, run.inputs, vectors, lm)
    model = build_model(run.config, data, lm, start=False)
    try:
        model.load_trained_state(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoadedRun(run, lm, data, model.to(device_of(run.config.trainer.accelerator)).eval())


def started_in(folder: Path) -> Path:
    """Where a run was started, told by `paths.runs_dir` at the end of its folder's path; else the working folder."""
    if not (folder / "config.yaml").is_file():
        return Path.cwd()
    runs_dir = Path(read_run_config(folder).paths.runs_dir)
    start = Path(str(folder.parent).removesuffix(str(runs_dir)))
    return start if start / runs_dir == folder.parent else Path.cwd()


def forget(run: Run) -> None:
    """Removes everything of a run but its config."""
    logger.info("training anew: %s", run.folder)
    for path in run.folder.iterdir():
        if path.name not in ("config.yaml", RECORD):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write_record(run, _made_from(run))


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)  # its shape, not its bytes
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is cut off"
        raise ValueError(
            f"{checkpoint}: cannot be read ({reason}). Delete it, or set force=true, to train anew."
        ) from error


def _trainer(run: Run, loggers: Sequence[Any], callbacks: Sequence[Any]) -> Any:
    import lightning as L
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar

    from regen.training.callbacks import LastCheckpoint

    settings, folder = plain(run.config.trainer), run.folder / "checkpoints"
    if settings["strategy"] == SHARDED:
        from lightning.pytorch.strategies import ModelParallelStrategy

        settings["strategy"] = ModelParallelStrategy(
            data_parallel_size=settings["devices"], tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    device = device_of(settings["accelerator"])
    if device.index and settings["devices"] == 1:
        settings["devices"] = [device.index]  # the GPU of this cell of a grid
    chosen = {name: node.build() for name, node in run.config.callbacks.items()}
    for callback in chosen.values():
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder)
    useless = ((LearningRateMonitor,) if not loggers else ()) + (
        () if settings["enable_progress_bar"] else (ProgressBar,)
    )
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
        callbacks=[*(callback for callback in chosen.values() if not isinstance(callback, useless)), *callbacks, last],
        default_root_dir=run.folder,
    )


def _best_checkpoint(trainer: Any) -> dict[str, Any]:
    """What the best checkpoint of a trainer holds; empty where there is none."""
    for callback in trainer.checkpoint_callbacks:
        path = Path(callback.best_model_path)
        if callback.monitor is not None and path.is_file():
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return found | {"monitored": float(callback.best_model_score)}
    return {}


def _save(run: Run, model: SoftTokenLM, facts: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in model.trained_state().items()}
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{run.folder}: {len(bad)} of {len(state)} trained tensors are not finite, the first is {bad[0]}. Nothing "
            f"is saved. Lower adapter.lr={run.config.adapter.lr} and tuning.lr={run.config.tuning.lr}."
        )
    record = json.loads((run.folder / RECORD).read_text()) | facts
    record["trained_parameters"] = sum(tensor.numel() for tensor in state.values())
    _write_record(run, record)
    metadata = {"config": json.dumps(plain(run.config)), "versions": json.dumps(record["versions"])}
    write_atomically(run.folder / WEIGHTS, lambda path: save_file(state, path, metadata=metadata))
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # what they held and is worth keeping is in WEIGHTS


def _write_record(run: Run, record: dict[str, Any]) -> None:
    write_atomically(run.folder / RECORD, lambda path: path.write_text(json.dumps(record, indent=2, allow_nan=False)))


def is_main_process() -> bool:
    """Whether this is the process that writes files; the other ranks of a job only train.

    Torchrun, Lightning and Slurm each set some of these variables; only the main process has 0 in all that are set.
    """
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
