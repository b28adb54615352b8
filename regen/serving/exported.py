"""Writes and reads the folder of an exported model, on disk or on the Hugging Face hub."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file
from transformers import GenerationConfig

from regen.models.adapter import Adapter
from regen.models.closed_form_file import read_closed_form, write_closed_form
from regen.models.language_model import LanguageModel
from regen.pipeline import LACKS
from regen.serving.card import base_model
from regen.serving.items import Items
from regen.serving.manifest import CARD, MANIFEST, check_manifest, write_manifest
from regen.serving.spec import read_spec
from regen.serving.weights import load_language_model, load_weights, save_weights
from regen.storage import hub
from regen.storage.artefacts import appearing_whole

if TYPE_CHECKING:
    from regen.serving.trained_model import TrainedModel

CONFIG = "config.json"
ITEMS = "items.parquet"
FACTORS = "cf.safetensors"
CATALOGUE = "catalogue.safetensors"  # of a recommender: item vectors, CF first, and purchases of the training users
CLOSED_FORM = "closed_form.safetensors"


def write_folder(model: "TrainedModel", folder: Path) -> Path:
    """Writes a model into a folder, in one step.

    Raises:
        ValueError: If the folder holds something other than an exported model.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        raise ValueError(f"{folder} is not an exported model. Choose another folder.")
    with appearing_whole(folder) as partial:
        _write(model, partial)
    return folder


def _write(model: "TrainedModel", folder: Path) -> None:
    save_weights(model.soft_token_lm, folder, base_model=base_model(model.spec.lm))
    (folder / CONFIG).write_text(model.spec.to_json(), encoding="utf-8")
    model.generation.save_pretrained(folder)
    model.items.table.write_parquet(folder / ITEMS)
    if model.closed_form is not None:
        form = model.closed_form
        save_file({"vectors": form.items.numpy(), "purchases": form.bought}, folder / CATALOGUE)
        write_closed_form(form, folder / CLOSED_FORM, folds=False)
    elif model.items.factors is not None:
        save_file({"vectors": model.items.factors}, folder / FACTORS)
    (folder / CARD).write_text(model.card, encoding="utf-8")
    write_manifest(folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner can read


def read_parts(
    source: Path | str,
    *,
    tasks: Sequence[str],
    revision: str | None,
    lm: LanguageModel | str | None,
    adapters: Mapping[str, Callable[..., Adapter]],
) -> dict[str, Any]:
    """The arguments of `NarrativeModel` or `Recommender` for an exported folder, on a GPU if there is one.

    Raises:
        FileNotFoundError, ValueError: As for `TrainedModel.from_pretrained`.
    """
    folder = _folder(source, revision)
    files = check_manifest(folder)
    spec = read_spec(folder / CONFIG)
    if spec.task not in tasks:
        raise ValueError(
            f"{folder}: an exported model of task={spec.task}, which {LACKS[tasks[0]]}. Give one of "
            f"task={' or '.join(tasks)}."
        )
    spec.warn_of_versions()
    loaded = load_language_model(spec, lm)
    factors = load_file(folder / FACTORS)["vectors"] if FACTORS in files else None
    form = None
    if spec.ranking is not None:
        catalogue = load_file(folder / CATALOGUE)
        form = read_closed_form(folder / CLOSED_FORM, catalogue["vectors"], catalogue["purchases"])
        factors = catalogue["vectors"][:, : spec.cf_dim] if spec.cf_dim else None
    model = load_weights(spec, loaded, folder, adapters=adapters, form=form)
    card = folder / CARD
    return {
        **({} if form is None else {"closed_form": form}),
        "spec": spec,
        "soft_token_lm": model.to("cuda" if torch.cuda.is_available() else "cpu"),
        "lm": loaded,
        "items": Items(pl.read_parquet(folder / ITEMS, glob=False), factors),
        "generation": GenerationConfig.from_pretrained(folder),
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
    }


def task_of(source: Path | str) -> str:
    """Task of an exported model: `narrate`, `recommend` or `converse`.

    Raises:
        FileNotFoundError, ValueError: As for `TrainedModel.from_pretrained`.
    """
    folder = _folder(source, None)
    check_manifest(folder)
    return read_spec(folder / CONFIG).task


def push(model: "TrainedModel", repository: str, *, private: bool) -> str:
    """Uploads a model to the Hugging Face hub.

    Raises:
        ValueError: If the hub refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(model, Path(temporary) / "model")
        return hub.push(folder, repository, kind="model", private=private)


def _folder(source: Path | str, revision: str | None) -> Path:
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{source}: no such folder, and the hub gives no such model ({str(error).splitlines()[0]}). "
            "Give the folder of an exported model, or OWNER/NAME and a network."
        ) from error
