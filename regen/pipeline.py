"""Builds artefacts and runs from a typed config; the only module that knows all stages."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from regen.config import schema
from regen.config.objects import Component, build_object, plain, read_run_config
from regen.data.prepare import load_tables, prepare
from regen.embeddings.encode import CFPart
from regen.embeddings.encode_content import ContentPart, ItemContentPart
from regen.embeddings.encode_critiques import CRITIQUES, CritiquePart
from regen.embeddings.parts import Part, interaction_vectors
from regen.runtime.console import quiet_libraries
from regen.storage import identity
from regen.storage.artefacts import Artefact, expected_folder

if TYPE_CHECKING:
    from regen.data.datamodule import NarrativeDataModule
    from regen.embeddings.fusion import InteractionVectors
    from regen.training.module import NarrativeModule
    from regen.training.run import LoadedRun, Run

logger = logging.getLogger(__name__)
LACKS = {  # why a run of another task cannot stand in for this one
    "narrate": "writes no narratives of given histories",
    "recommend": "does not recommend",
    "converse": "writes nothing about what it recommends",
}
HISTORY = 50  # purchases that a rater reads (paper 3.2)


def prepared_artefact(config: schema.PrepareConfig, *, force: bool = False) -> Artefact:
    """Builds or reuses the prepared tables (stage `prepare`)."""
    return prepare(config.source.build(), config.source.node, root=Path(config.paths.data_dir), force=force)


def data_artefact(config: schema.NarratedConfig, *, force: bool = False) -> Artefact:
    """Builds or reuses the prepared tables with the narratives of the config's narrator (stage `narrate`)."""
    prepared = prepared_artefact(config)
    if config.narrator.name == "source":
        return prepared
    from regen.narratives.choices import build_narrator
    from regen.narratives.narrate import narrate

    return narrate(
        build_narrator(config),
        prepared=prepared,
        max_history=config.narrator.max_history,
        users=config.narrator.users,
        shared_category=config.narrator.shared_category,
        root=Path(config.paths.data_dir),
        force=force,
    )


def encoder_part(config: schema.EncodeConfig, entry: str | Component) -> Part:
    """The part that an entry of `encoder.parts` names: `cf`, `content`, or a node with a class of the user's own."""
    if isinstance(entry, Component):
        part: Part = entry.build()
        return part
    if entry == "cf":
        return CFPart(config.cf.model.build(), plain(config.cf), config.cf.alpha, config.split)
    if isinstance(config, schema.TrainConfig) and config.task.ranks:
        return ItemContentPart(config.content.pretrained, config.content.batch_size)
    return ContentPart(config.content.pretrained, config.content.batch_size, config.engine.build())


def critique_part(config: schema.TrainConfig) -> CritiquePart:
    """The critiques that a run with `data.critiques=true` reads."""
    return CritiquePart(config.content.pretrained, config.content.batch_size, config.data.shared_category)


def encoded_artefacts(
    config: schema.EncodeConfig, entries: Sequence[str | Component], prepared: Artefact, *, force: bool = False
) -> dict[str, Artefact]:
    """Builds or reuses the vectors of each part (stage `encode`), by the part's name."""
    root = Path(config.paths.data_dir)
    return {
        _part_name(entry): encoder_part(config, entry).encode(prepared, root=root, force=force) for entry in entries
    }


def vectors_of(config: schema.TrainConfig, inputs: identity.Inputs) -> "InteractionVectors":
    """The fused vectors that a run's adapter reads."""
    tables = load_tables(inputs.prepared.path)
    parts = [
        encoder_part(config, entry).load(inputs.encoded[_part_name(entry)], tables) for entry in config.encoder.parts
    ]
    return interaction_vectors(config.encoder.name, parts, tables, dim=config.encoder.dim, seed=config.seed)


def build_inputs(config: schema.TrainConfig) -> identity.Inputs:
    """Builds or reuses all artefacts that a run reads."""
    from regen.training.preflight import check_data

    prepared = data_artefact(config)
    check_data(config, prepared.path)
    encoded = encoded_artefacts(config, config.encoder.parts, prepared)
    if config.data.critiques:
        encoded[CRITIQUES] = critique_part(config).encode(prepared, root=Path(config.paths.data_dir))
    return identity.Inputs(prepared, encoded)


def open_run(config: schema.TrainConfig) -> "Run":
    """Builds the artefacts that a run reads, and its folder with the config in it."""
    from regen.training import run as runs

    config, weights = _resolved(config)
    return runs.make_folder(config, build_inputs(config), weights)


def read_run(folder: Path) -> "Run":
    """Opens a run by its folder; missing artefacts are built again.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the data or the LM's weights have changed since the training.
    """
    from regen.training.run import RECORD, Run

    config = read_run_config(folder)
    run = Run(folder, config, build_inputs(config))
    record = json.loads((folder / RECORD).read_text())
    if (trained_on := record["inputs"]) != run.inputs.fingerprints():
        raise ValueError(
            f"{folder} was trained on data {trained_on}, and its config now makes {run.inputs.fingerprints()}: an "
            "input file or a library has changed since. Train it again, or bring the old input back."
        )
    if (trained_from := record["weights"]) != (now := identity.lm_weights(config.lm.node)):
        raise ValueError(
            f"{folder} was trained from the LM {trained_from}, and its config now names {now}: the weights have "
            "changed since. Train it again, or bring the old weights back."
        )
    return run


def load_run(run: "Run") -> "LoadedRun":
    """Loads a finished run with its trained weights.

    Raises:
        ValueError: If the weights are damaged or belong to another model.
    """
    from regen.training.run import load

    return load(run, vectors_of(run.config, run.inputs))


def load_folder(folder: Path) -> "LoadedRun":
    """Loads a finished run by its folder; other processes can call it."""
    return load_run(read_run(folder))


def check_task(config: schema.TrainConfig, folder: Path, tasks: Sequence[str] = ("narrate",)) -> None:
    """Checks that a run was trained for one of these tasks.

    Raises:
        ValueError: If it was not.
    """
    if config.task.name not in tasks:
        raise ValueError(
            f"{folder}: a run of task={config.task.name}, which {LACKS[tasks[0]]}. Give a run of "
            f"task={' or '.join(tasks)}."
        )


@contextmanager
def opened_run(folder: Path, *, tasks: Sequence[str] = ("narrate",)) -> "Iterator[Run]":
    """Opens a finished run of one of these tasks.

    The working directory is that of the training command meanwhile, so that relative paths in the config hold.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, has another task or was trained on a part of the data, or if its data or
            the LM's weights have changed since.
    """
    from regen.training.run import WEIGHTS, started_in

    folder = folder.resolve()
    with chdir(started_in(folder)):
        run = read_run(folder)
        check_task(run.config, folder, tasks)
        if run.limits:
            raise ValueError(f"{folder}: trained with {', '.join(run.limits)}, for debugging. Train it without.")
        if not run.finished:
            raise ValueError(f"{folder}: not finished, there is no {WEIGHTS} in it. Run its train.py command again.")
        yield run


def build(config: schema.TrainConfig) -> "tuple[NarrativeDataModule, NarrativeModule]":
    """Builds data and module for a `lightning.Trainer` of your own, and the artefacts that they need.

    Raises:
        ValueError: If the config cannot be trained.
    """
    from regen.training.assembly import build_data, build_model, build_module

    _check(config)
    config, _ = _resolved(config)
    inputs = build_inputs(config)
    lm = config.lm.build()
    data = build_data(config, inputs, vectors_of(config, inputs), lm)
    return data, build_module(config, build_model(config, data, lm, start=True).train())


@dataclass(frozen=True)
class PlannedArtefact:
    """A stage and the folder of its artefact, which may not exist yet."""

    stage: str
    folder: Path

    @property
    def exists(self) -> bool:
        """Whether the folder exists; its files are not checked."""
        return self.folder.is_dir()


@dataclass(frozen=True)
class Plan:
    """What a run reads and where its folder is, known before anything is built.

    Attributes:
        config: The run's config, with its number of epochs.
        artefacts: In the order in which they are built.
        data: Folder of the training data.
        run: Folder of the run.
    """

    config: schema.TrainConfig
    artefacts: tuple[PlannedArtefact, ...]
    data: Path
    run: Path


def plan(config: schema.TrainConfig) -> Plan:
    """Plans a run without building anything. It reads the source's files, and downloads those that are missing.

    Raises:
        ValueError: If the config cannot be trained.
    """
    from regen.training import run as runs

    _check(config)
    root, source = Path(config.paths.data_dir), config.source
    data = expected_folder(root, **identity.prepared(source.node, source.build().files()))
    stages = [PlannedArtefact("prepare", data)]
    if config.narrator.name != "source":
        from regen.narratives.choices import build_narrator

        about, recipe = config.narrator, build_narrator(config).recipe()
        limits = {"max_history": about.max_history, "users": about.users, "shared_category": about.shared_category}
        request = identity.narrated(_fingerprint(data), recipe, **limits)
        data = expected_folder(root, **request)
        stages.append(PlannedArtefact("narrate", data))
    parts: dict[str, Part | CritiquePart] = {
        _part_name(entry): encoder_part(config, entry) for entry in config.encoder.parts
    }
    if config.data.critiques:
        parts[CRITIQUES] = critique_part(config)
    folders = {name: expected_folder(root, **part.request(_fingerprint(data))) for name, part in parts.items()}
    stages += [PlannedArtefact(f"encode {name}", folder) for name, folder in folders.items()]
    inputs = {name: _fingerprint(folder) for name, folder in {"prepared": data, **folders}.items()}
    config, weights = _resolved(config)
    return Plan(config, tuple(stages), data, runs.folder_of(config, inputs, weights))


def train_and_evaluate(config: schema.TrainConfig) -> tuple[Path, float]:
    """Trains and scores a run; resumes an interrupted one and reuses a finished one.

    Returns:
        The run's folder and the best value of the monitored metric, by default the validation loss.
    """
    from regen.evaluation.at_validation import callbacks_at_validation
    from regen.evaluation.evaluate import evaluate_run, evaluation_is_current
    from regen.runtime.device import encoding_on
    from regen.training import run as runs
    from regen.training.fit import fit
    from regen.training.loggers import experiment_loggers

    _check(config)
    quiet_libraries()  # again, because importing lightning resets its log levels
    with encoding_on(config.trainer.accelerator):
        run = open_run(config)
        with runs.locked(run):
            if (config.force or run.limits) and runs.is_main_process():
                runs.forget(run)
            if run.finished and (evaluation_is_current(run) or not config.score):
                logger.info("finished before: %s", run.folder)
            else:
                with experiment_loggers(run) as loggers:
                    vectors = vectors_of(run.config, run.inputs)
                    if run.finished:
                        loaded = runs.load(run, vectors)
                    else:
                        loaded = fit(run, vectors, loggers, callbacks_at_validation(run))
                    if config.score and runs.is_main_process():
                        evaluate_run(loaded, loggers, reopen=load_folder)
    best = json.loads((run.folder / runs.RECORD).read_text()).get("monitored")
    return run.folder, float("nan") if best is None else float(best)


def diagnose(folder: Path) -> Path:
    """Tests whether an evaluated run memorises or reads its input; see `regen.evaluation.diagnosis`.

    It uses the evaluation settings of the scores in the folder.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: If the folder holds no run, or one that was not evaluated.
        ValueError: If the scores were made with other weights.
    """
    from regen.evaluation.diagnosis import write_diagnosis
    from regen.evaluation.evaluate import EVALUATION, predictions_are_current
    from regen.training.run import locked

    run = read_run(folder)
    check_task(run.config, folder)
    evaluated = run.folder / EVALUATION
    if not (run.finished and evaluated.is_file()):
        raise FileNotFoundError(
            f"{run.folder}: not trained and evaluated yet. Run: python evaluate.py run={run.folder}"
        )
    settings = build_object(schema.Evaluation, json.loads(evaluated.read_text(encoding="utf-8"))["settings"])
    run = replace(run, config=replace(run.config, evaluation=settings))
    if not predictions_are_current(run):
        raise ValueError(f"{run.folder}: its scores were not made with its weights. Run: python evaluate.py run=FOLDER")
    with locked(run):
        return write_diagnosis(load_run(run))


def _check(config: schema.TrainConfig) -> None:
    """Raises a ValueError for a config that cannot be trained."""
    from regen.evaluation.at_validation import check_monitor
    from regen.training.preflight import check_config

    check_config(config)
    check_monitor(config)


def _part_name(entry: str | Component) -> str:
    return entry.name if isinstance(entry, Component) else entry


def _fingerprint(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _resolved(config: schema.TrainConfig) -> tuple[schema.TrainConfig, dict[str, str]]:
    """Sets the number of epochs and the commit of an LM from the hub; also returns what identifies the LM's weights."""
    if config.trainer.max_epochs is None:
        epochs = max(feature.epochs for feature in config.feature.values())
        config = replace(config, trainer=replace(config.trainer, max_epochs=epochs))
    weights = identity.lm_weights(config.lm.node)
    if "commit" in weights:  # so that the run never uses a later one
        config = replace(config, lm=Component({**config.lm.node, "revision": weights["commit"]}))
    return config, weights
