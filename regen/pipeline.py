"""From a typed config to artefacts and runs: the only module that knows all stages."""

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
LACKS = {  # what a run of another task does not do
    "narrate": "writes no narratives of given histories",
    "recommend": "does not recommend",
    "converse": "tells nothing of what it recommends",
}
HISTORY = 50  # purchases that a rater reads (paper 3.2)


def prepared_artefact(config: schema.PrepareConfig, *, force: bool = False) -> Artefact:
    """Stage `prepare`."""
    return prepare(config.source.build(), config.source.node, root=Path(config.paths.data_dir), force=force)


def data_artefact(config: schema.NarratedConfig, *, force: bool = False) -> Artefact:
    """The prepared data with narratives of the config's narrator: the source's own, or newly written ones."""
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
        root=Path(config.paths.data_dir),
        force=force,
    )


def encoder_part(config: schema.EncodeConfig, entry: str | Component) -> Part:
    """What one entry of `encoder.parts` stands for: the group `cf` or `content`, or a class of the user's own."""
    if isinstance(entry, Component):
        part: Part = entry.build()
        return part
    if entry == "cf":
        return CFPart(config.cf.model.build(), plain(config.cf), config.cf.alpha, config.split)
    if isinstance(config, schema.TrainConfig) and config.task.ranks:
        return ItemContentPart(config.content.pretrained, config.content.batch_size)
    return ContentPart(config.content.pretrained, config.content.batch_size, config.engine.build())


def critique_part(config: schema.TrainConfig) -> CritiquePart:
    """What users say about a purchase, with `data.critiques`."""
    return CritiquePart(config.content.pretrained, config.content.batch_size, config.data.shared_category)


def encoded_artefacts(
    config: schema.EncodeConfig, entries: Sequence[str | Component], prepared: Artefact, *, force: bool = False
) -> dict[str, Artefact]:
    """Stage `encode`: the artefact of each part, by its name."""
    root = Path(config.paths.data_dir)
    return {
        _part_name(entry): encoder_part(config, entry).encode(prepared, root=root, force=force) for entry in entries
    }


def vectors_of(config: schema.TrainConfig, inputs: "identity.Inputs") -> "InteractionVectors":
    """The vectors that enter the adapter of a run."""
    tables = load_tables(inputs.prepared.path)
    parts = [
        encoder_part(config, entry).load(inputs.encoded[_part_name(entry)], tables) for entry in config.encoder.parts
    ]
    return interaction_vectors(config.encoder.name, parts, tables, dim=config.encoder.dim, seed=config.seed)


def build_inputs(config: schema.TrainConfig) -> "identity.Inputs":
    """Builds the missing ones of the artefacts that a run reads."""
    from regen.training.preflight import check_data

    prepared = data_artefact(config)
    check_data(config, prepared.path)
    encoded = encoded_artefacts(config, config.encoder.parts, prepared)
    if config.data.critiques:
        encoded[CRITIQUES] = critique_part(config).encode(prepared, root=Path(config.paths.data_dir))
    return identity.Inputs(prepared, encoded)


def open_run(config: schema.TrainConfig) -> "Run":
    """Builds the missing artefacts of a cell and finds its folder, which appears with its config in it."""
    from regen.training import run as runs

    config, weights = _resolved(config)
    return runs.make_folder(config, build_inputs(config), weights)


def read_run(folder: Path) -> "Run":
    """A run from its folder alone; artefacts that are gone are built again.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its data or the LM's weights are not those that it was trained with.
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
    """A finished run with its trained weights.

    Raises:
        ValueError: If the weights are damaged or belong to another model.
    """
    from regen.training.run import load

    return load(run, vectors_of(run.config, run.inputs))


def load_folder(folder: Path) -> "LoadedRun":
    """`load_run` by the folder, for a process of its own."""
    return load_run(read_run(folder))


def check_task(config: schema.TrainConfig, folder: Path, tasks: Sequence[str] = ("narrate",)) -> None:
    """Refuses a run of another task than what is to be done takes.

    Raises:
        ValueError: If its task is another one.
    """
    if config.task.name not in tasks:
        raise ValueError(
            f"{folder}: a run of task={config.task.name}, which {LACKS[tasks[0]]}. Give one of "
            f"task={' or '.join(tasks)}."
        )


@contextmanager
def opened_run(folder: Path, *, tasks: Sequence[str] = ("narrate",)) -> "Iterator[Run]":
    """A finished run of one of these tasks, inside the folder from which it was started: there its relative paths hold.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, is of another task, or saw a part of the data only, or if what it was
            made from has changed.
    """
    from regen.training.run import WEIGHTS, started_in

    folder = folder.resolve()
    with chdir(started_in(folder)):
        run = read_run(folder)
        check_task(run.config, folder, tasks)
        if run.limits:
            raise ValueError(f"{folder}: made with {', '.join(run.limits)}, which is for debugging. Train it without.")
        if not run.finished:
            raise ValueError(f"{folder}: not finished, there is no {WEIGHTS} in it. Run its train.py command again.")
        yield run


def build(config: schema.TrainConfig) -> "tuple[NarrativeDataModule, NarrativeModule]":
    """Data and module of a config, for a `lightning.Trainer` of your own; missing artefacts are built.

    Raises:
        ValueError: If the config is sure to fail.
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
    """A stage of a plan.

    Attributes:
        stage: Its name.
        folder: Where its artefact lies or will lie.
    """

    stage: str
    folder: Path

    @property
    def exists(self) -> bool:
        """Whether the folder is there; a damaged one is built anew all the same."""
        return self.folder.is_dir()


@dataclass(frozen=True)
class Plan:
    """What a cell reads and where its run lies, known before anything is built.

    Attributes:
        config: The run's, with its number of epochs.
        artefacts: In the order in which they are built.
        data: Folder of the data that are trained on.
        run: The run's folder.
    """

    config: schema.TrainConfig
    artefacts: tuple[PlannedArtefact, ...]
    data: Path
    run: Path


def plan(config: schema.TrainConfig) -> Plan:
    """The plan of a cell. It reads the source's files, and fetches those that are not there, but builds nothing.

    Raises:
        ValueError: If the config is sure to fail.
    """
    from regen.training import run as runs

    _check(config)
    root, source = Path(config.paths.data_dir), config.source
    data = expected_folder(root, **identity.prepared(source.node, source.build().files()))
    stages = [PlannedArtefact("prepare", data)]
    if config.narrator.name != "source":
        from regen.narratives.choices import build_narrator

        about, recipe = config.narrator, build_narrator(config).recipe()
        request = identity.narrated(_fingerprint(data), recipe, max_history=about.max_history, users=about.users)
        data = expected_folder(root, **request)
        stages.append(PlannedArtefact("narrate", data))
    inputs = {"prepared": _fingerprint(data)}
    for entry in config.encoder.parts:
        folder = expected_folder(root, **encoder_part(config, entry).request(_fingerprint(data)))
        inputs[_part_name(entry)] = _fingerprint(folder)
        stages.append(PlannedArtefact(f"encode {_part_name(entry)}", folder))
    if config.data.critiques:
        folder = expected_folder(root, **critique_part(config).request(_fingerprint(data)))
        inputs[CRITIQUES] = _fingerprint(folder)
        stages.append(PlannedArtefact(f"encode {CRITIQUES}", folder))
    config, weights = _resolved(config)
    return Plan(config, tuple(stages), data, runs.folder_of(config, inputs, weights))


def train_and_evaluate(config: schema.TrainConfig) -> tuple[Path, float]:
    """One cell: trains and scores it, resumes it, or finds it finished.

    Returns:
        The run's folder and the best value of what is monitored, by default the validation loss.
    """
    from regen.evaluation.at_validation import callbacks_at_validation
    from regen.evaluation.evaluate import evaluate_run, evaluation_is_current
    from regen.training import run as runs
    from regen.training.loggers import experiment_loggers

    _check(config)
    quiet_libraries()  # again: lightning sets its levels when it is imported
    run = open_run(config)
    with runs.locked(run):
        if (config.force or run.limits) and runs.is_main_process():
            runs.forget(run)
        if not (run.finished and (evaluation_is_current(run) or not config.score)):
            with experiment_loggers(run) as loggers:
                vectors = vectors_of(run.config, run.inputs)
                if run.finished:
                    loaded = runs.load(run, vectors)
                else:
                    loaded = runs.fit(run, vectors, loggers, callbacks_at_validation(run))
                if config.score and runs.is_main_process():
                    evaluate_run(loaded, loggers, reopen=load_folder)
        else:
            logger.info("finished before: %s", run.folder)
    best = json.loads((run.folder / runs.RECORD).read_text()).get("monitored")
    return run.folder, float("nan") if best is None else float(best)


def diagnose(folder: Path) -> Path:
    """Whether a finished and evaluated run memorises or reads; see `regen.evaluation.diagnosis`.

    Bootstrap, embeddings and generation are those of the scores in the folder.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If the folder holds no run, or one that was not evaluated.
        ValueError: If its scores are not those of its weights.
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
    """Refuses a cell that is sure to fail."""
    from regen.evaluation.at_validation import check_monitor
    from regen.training.preflight import check_config

    check_config(config)
    check_monitor(config)


def _part_name(entry: str | Component) -> str:
    return entry.name if isinstance(entry, Component) else entry


def _fingerprint(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _resolved(config: schema.TrainConfig) -> tuple[schema.TrainConfig, dict[str, str]]:
    """A config with its number of epochs and the commit of an LM from the hub; and what identifies the LM's weights."""
    if config.trainer.max_epochs is None:
        epochs = max(feature.epochs for feature in config.feature.values())
        config = replace(config, trainer=replace(config.trainer, max_epochs=epochs))
    weights = identity.lm_weights(config.lm.node)
    if "commit" in weights:  # the run keeps to it, whatever the hub has later
        config = replace(config, lm=Component({**config.lm.node, "revision": weights["commit"]}))
    return config, weights
