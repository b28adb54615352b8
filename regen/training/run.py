"""The folder of a training run: config, record, checkpoints and trained weights.

The same resolved config on the same data has the same folder, so a command that is given again resumes an interrupted
run and reuses a finished one. `regen.training.fit` trains a run.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from regen.config.objects import plain, read_run_config
from regen.config.schema import TrainConfig
from regen.data.datamodule import NarrativeDataModule
from regen.data.splits import described
from regen.embeddings.fusion import InteractionVectors
from regen.embeddings.parts import TEXT
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.costs import TRAINED
from regen.runtime.device import device_of
from regen.storage import identity
from regen.storage.artefacts import fingerprint, installed_versions
from regen.storage.atomic import locked_folder, write_atomically
from regen.storage.identity import Inputs
from regen.training.assembly import build_data, build_model

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
RECORD = TRAINED  # the file with inputs, versions and results of the training
LIMITS = ("fast_dev_run", "limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: Holds config, checkpoints or trained weights, logs, predictions and scores.
        config: The resolved config.
        inputs: The artefacts that the run reads.
    """

    folder: Path
    config: TrainConfig
    inputs: Inputs

    @property
    def finished(self) -> bool:
        """Whether the folder has trained weights, and the run was trained on all data."""
        return (self.folder / WEIGHTS).is_file() and not self.limits

    @property
    def limits(self) -> list[str]:
        """Debugging settings that restrict the run to a part of the data. Such a run never counts as finished."""
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
    """Makes the folder of a run, with config and record in it.

    Args:
        config: The run's config, with its number of epochs.
        inputs: The artefacts that the run reads.
        weights: The LM's weights before training, see `identity.lm_weights`.
    """
    run = Run(folder_of(config, inputs.fingerprints(), weights), config, inputs)
    if is_main_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        write_atomically(run.folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
        if not (run.folder / RECORD).is_file():
            write_record(run, provenance(run))
    return run


def folder_of(config: TrainConfig, inputs: Mapping[str, str], weights: Mapping[str, str]) -> Path:
    """Path of a run's folder. `inputs` are fingerprints by name; the other arguments are those of `make_folder`."""
    versions = installed_versions(identity.LIBRARIES)
    recipe = identity.run(plain(config), inputs=inputs, weights=weights, versions=versions)
    return Path(config.paths.runs_dir) / f"{_label(config)}-{fingerprint(recipe)}"


def _label(config: TrainConfig) -> str:
    """The readable part of the name of a run's folder."""
    features = sorted(config.feature)
    parts = ["+".join(features) if len(features) <= 2 else f"{len(features)}_features", config.encoder.name]
    if config.encoder.name != TEXT:
        parts.append(config.adapter.name)
    return "-".join([*parts, config.lm.name, config.tuning.name, f"seed{config.seed}"])


def provenance(run: Run) -> dict[str, Any]:
    """What a run is made from: its inputs, the LM's weights, library versions, the split and debugging limits."""
    return {
        "inputs": run.inputs.fingerprints(),
        "weights": identity.lm_weights(run.config.lm.node),
        "versions": {name: metadata.version(name) for name in ("regen", *identity.LIBRARIES)},
        "split": described(run.config.split),
        "limits": run.limits,
    }


def write_record(run: Run, record: dict[str, Any]) -> None:
    """Replaces the record of a run."""
    write_atomically(run.folder / RECORD, lambda path: path.write_text(json.dumps(record, indent=2, allow_nan=False)))


def locked(run: Run) -> AbstractContextManager[None]:
    """Lets one process at a time work on a run; the other ranks of a job rely on their main process's lock."""
    return locked_folder(run.folder) if is_main_process() else nullcontext()


def load(run: Run, vectors: InteractionVectors) -> LoadedRun:
    """Loads a finished run with its trained weights.

    Raises:
        ValueError: If the weights are damaged or belong to another model.
    """
    path = run.folder / WEIGHTS
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Train the run anew with force=true.") from error
    lm: LanguageModel = run.config.lm.build()
    data = build_data(run.config, run.inputs, vectors, lm, folder=run.folder)
    model = build_model(run.config, data, lm, start=False)
    try:
        model.load_trained_state(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoadedRun(run, lm, data, model.to(device_of(run.config.trainer.accelerator)).eval())


def started_in(folder: Path) -> Path:
    """Working directory of a run's training command, from `paths.runs_dir` in its config.

    It is the current one if the folder is not in `paths.runs_dir` any more.
    """
    if not (folder / "config.yaml").is_file():
        return Path.cwd()
    runs_dir = Path(read_run_config(folder).paths.runs_dir)
    start = Path(str(folder.parent).removesuffix(str(runs_dir)))
    return start if start / runs_dir == folder.parent else Path.cwd()


def forget(run: Run) -> None:
    """Removes everything in a run's folder but its config and record; the record is reset."""
    logger.info("training anew: %s", run.folder)
    for path in run.folder.iterdir():
        if path.name not in ("config.yaml", RECORD):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_record(run, provenance(run))


def is_main_process() -> bool:
    """Whether this process writes files; the other ranks of a distributed job only train.

    Torchrun, Lightning and Slurm each set some of these variables. The main process has 0 in all that are set.
    """
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
