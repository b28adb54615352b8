"""A training run: a folder that holds all it takes to go on, to evaluate, and to train again.

A run is an artefact: the same resolved config on the same data is the same folder, so a command given again resumes an
interrupted run and reuses a finished one.
"""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from regen.data.datamodule import NarrativeDataModule
from regen.models.language_model import LanguageModel, hold_frozen_in_bfloat16
from regen.models.soft_token_lm import SoftTokenLM
from regen.pipeline import TEXT, instantiate, plain
from regen.runtime.costs import KEY, TRAINED, PeakMemory
from regen.runtime.packed_weights import packed_weights
from regen.storage import identity
from regen.storage.artefacts import fingerprint, installed_versions, write_atomically
from regen.training.assembly import (
    Inputs,
    build_data,
    build_inputs,
    build_model,
    library_versions,
    load_language_model,
)

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
RECORD = TRAINED  # inputs, versions, and what training found
SHARDED = "fsdp2"  # the strategy of trainer=fsdp


@dataclass(frozen=True)
class Run:
    """One cell of a grid on disk.

    Attributes:
        folder: Holds config, checkpoints or trained weights, logs, predictions and scores.
        cfg: The resolved config.
        inputs: The artefacts it reads.
    """

    folder: Path
    cfg: DictConfig
    inputs: Inputs

    @property
    def finished(self) -> bool:
        """Whether the trained weights are there."""
        return (self.folder / WEIGHTS).is_file()

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


def open_run(cfg: DictConfig) -> Run:
    """Builds the missing artefacts of a cell and finds its folder, which appears with its config in it."""
    config = plain(cfg)
    if config["training"]["epochs"] is None:
        config["training"]["epochs"] = max(feature["epochs"] for feature in config["feature"].values())
    weights = identity.lm_weights(config["lm"])
    if "commit" in weights:  # the run keeps to it, whatever the hub has later
        config["lm"]["revision"] = weights["commit"]
    inputs = build_inputs(cfg)
    versions = installed_versions(identity.LIBRARIES)
    recipe = identity.run(config, inputs=inputs.fingerprints(), weights=weights, versions=versions)
    run = Run(Path(cfg.paths.runs_dir) / f"{_label(config)}-{fingerprint(recipe)}", OmegaConf.create(config), inputs)
    if is_main_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / "config.yaml", lambda path: path.write_text(OmegaConf.to_yaml(run.cfg)))
        if not (run.folder / RECORD).is_file():  # what training adds to it stays
            _write_record(run, _made_from(run))
    return run


def _label(config: Mapping[str, Any]) -> str:
    """What a person reads in the name of a run's folder."""
    features = sorted(config["feature"])
    parts = ["+".join(features) if len(features) <= 2 else f"{len(features)}_features", config["encoder"]["name"]]
    if config["encoder"]["name"] != TEXT:
        parts.append(config["adapter"]["name"])
    return "-".join([*parts, config["lm"]["name"], config["tuning"]["name"], f"seed{config['seed']}"])


def _made_from(run: Run) -> dict[str, Any]:
    """What a run's record says from the beginning."""
    weights = identity.lm_weights(plain(run.cfg.lm))
    return {"inputs": run.inputs.fingerprints(), "weights": weights, "versions": library_versions()}


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


def fit(run: Run, run_logger: Any) -> LoadedRun:
    """Trains a run, from its last checkpoint where there is one, and leaves the best weights in its folder.

    Raises:
        ValueError: If the last checkpoint cannot be read.
    """
    from regen.training.module import NarrativeModule, StepClock

    cfg, last = run.cfg, run.last_checkpoint
    lm = load_language_model(cfg)
    data = build_data(cfg, run.inputs, lm)
    model = build_model(cfg, data, lm, start=not last.exists())
    options = plain(cfg.training)
    rates = {"adapter_lr": cfg.adapter.lr, "lm_lr": cfg.tuning.lr}
    rates |= {key: options[key] for key in ("weight_decay", "warmup_share")}
    provenance = {"config": plain(cfg), **_made_from(run)}
    narrow = cfg.trainer.precision == "bf16-mixed"
    if narrow:
        hold_frozen_in_bfloat16(model.lm)
    module = NarrativeModule(model.train(), **rates, provenance=provenance)
    clock, memory = StepClock(), PeakMemory()
    trainer = _trainer(run, run_logger, clock)
    if last.exists():
        _check_readable(last)
        logger.info("resuming %s", last)
    packed = packed_weights(model.lm, backward=True) if cfg.trainer.strategy != SHARDED else nullcontext()
    with packed:
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if module.sharded or narrow:  # every process gives its part; what follows wants one model in float32
        state = model.trained_state()
        model = build_model(cfg, data, lm, start=False)
        model.load_trained_state(state)
    best = Path(trainer.checkpoint_callbacks[0].best_model_path)
    if is_main_process() and best.is_file():
        state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        model.load_trained_state({name.removeprefix("model."): tensor for name, tensor in state.items()})
    if is_main_process():
        lengths = data.splits["train"].lengths
        costs = {
            "positions": sum(lengths) / len(lengths),
            "step_ms": clock.step_ms,
            "memory_gib": memory.gib(),
        }
        facts = {"steps": trainer.global_step, "seconds": round(clock.seconds, 1), KEY: costs}
        _save(run, model, facts, trainer)
    return LoadedRun(run, lm, data, model.eval())


def load(run: Run) -> LoadedRun:
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
    lm = load_language_model(run.cfg)
    data = build_data(run.cfg, run.inputs, lm)
    model = build_model(run.cfg, data, lm, start=False)
    try:
        model.load_trained_state(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoadedRun(run, lm, data, model.eval())


def read_run(folder: Path) -> Run:
    """A run from its folder alone; artefacts that are gone are built again.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its data or the LM's weights are not those that it was trained with.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.yaml in it.")
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    run = Run(folder, cfg, build_inputs(cfg))
    record = json.loads((folder / RECORD).read_text())
    if (trained_on := record["inputs"]) != run.inputs.fingerprints():
        raise ValueError(
            f"{folder} was trained on data {trained_on}, and its config now makes {run.inputs.fingerprints()}: an "
            "input file or a library has changed since. Train it again, or bring the old input back."
        )
    if (trained_from := record["weights"]) != (now := identity.lm_weights(plain(cfg.lm))):
        raise ValueError(
            f"{folder} was trained from the LM {trained_from}, and its config now names {now}: the weights have "
            "changed since. Train it again, or bring the old weights back."
        )
    return run


@contextmanager
def opened_run(folder: Path) -> Iterator[Run]:
    """A finished run, inside the folder from which it was started: there the relative paths of its config hold.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, or what it was made from has changed.
    """
    folder = folder.resolve()
    with chdir(_started_in(folder)):
        run = read_run(folder)
        if not run.finished:
            raise ValueError(f"{folder}: not finished, there is no {WEIGHTS} in it. Run its train.py command again.")
        yield run


def _started_in(folder: Path) -> Path:
    """Where a run was started, told by `paths.runs_dir` at the end of its folder's path; else the working folder."""
    if not (folder / "config.yaml").is_file():
        return Path.cwd()
    runs_dir = Path(OmegaConf.load(folder / "config.yaml").paths.runs_dir)
    start = Path(str(folder.parent).removesuffix(str(runs_dir)))
    return start if start / runs_dir == folder.parent else Path.cwd()


def forget(run: Run) -> None:
    """Removes everything of a run but its config, for `force=true`."""
    logger.info("force=true: training %s anew", run.folder)
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


def _trainer(run: Run, run_logger: Any, clock: Any) -> Any:
    import lightning as L
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar

    from regen.training.module import READ_EVERY, LastCheckpoint

    training, trainer = run.cfg.training, plain(run.cfg.trainer)
    trainer.pop("num_workers")
    if trainer["strategy"] == SHARDED:
        from lightning.pytorch.strategies import ModelParallelStrategy

        trainer["strategy"] = ModelParallelStrategy(
            data_parallel_size=trainer["devices"], tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    folder = run.folder / "checkpoints"
    callbacks = [
        ModelCheckpoint(folder, "best", monitor="val_loss", save_top_k=1, enable_version_counter=False),
        clock,
        LastCheckpoint(
            folder,
            "last",
            train_time_interval=timedelta(seconds=training.checkpoint_seconds),
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        ),
        EarlyStopping(monitor="val_loss", patience=training.patience, check_on_train_epoch_end=False),
        LearningRateMonitor(),
    ]
    if trainer["enable_progress_bar"]:
        callbacks.append(TQDMProgressBar(refresh_rate=READ_EVERY))
    return L.Trainer(
        **trainer,
        max_epochs=training.epochs,
        gradient_clip_val=training.gradient_clip,
        val_check_interval=1 / training.validations_per_epoch,
        num_sanity_val_steps=0,
        log_every_n_steps=READ_EVERY,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=run_logger,
        callbacks=callbacks,
        default_root_dir=run.folder,
    )


@contextmanager
def experiment_logger(run: Run) -> Iterator[Any]:
    """The Lightning logger of the config, closed whatever happens."""
    options = plain(run.cfg.logger)
    if "project" not in options:
        yield instantiate(options, save_dir=str(run.folder), name="logs")
        return
    from regen.training.wandb_records import wandb_logger

    with wandb_logger(run) as run_logger:
        yield run_logger


def _save(run: Run, model: SoftTokenLM, facts: dict[str, Any], trainer: Any) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in model.trained_state().items()}
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{run.folder}: {len(bad)} of {len(state)} trained tensors are not finite, the first is {bad[0]}. Nothing "
            f"is saved. Lower adapter.lr={run.cfg.adapter.lr} and tuning.lr={run.cfg.tuning.lr}."
        )
    record = json.loads((run.folder / RECORD).read_text())
    record |= {**facts, "val_loss": _best_loss(trainer)}
    record["trained_parameters"] = sum(tensor.numel() for tensor in state.values())
    _write_record(run, record)
    metadata = {"config": json.dumps(plain(run.cfg)), "versions": json.dumps(record["versions"])}
    write_atomically(run.folder / WEIGHTS, lambda path: save_file(state, path, metadata=metadata))
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # what they held and is worth keeping is in WEIGHTS


def _write_record(run: Run, record: dict[str, Any]) -> None:
    write_atomically(run.folder / RECORD, lambda path: path.write_text(json.dumps(record, indent=2, allow_nan=False)))


def _best_loss(trainer: Any) -> float | None:
    score = trainer.checkpoint_callbacks[0].best_model_score
    return None if score is None else float(score)


def is_main_process() -> bool:
    """Whether this is the process that writes files; the other ranks of a job only train.

    Torchrun, Lightning and Slurm each set some of these variables; only the main process has 0 in all that are set.
    """
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
