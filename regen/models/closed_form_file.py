"""The file of a fitted closed form, so that loading a recommender does not fit it again."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.numpy import save_file

from regen.models.closed_form import ClosedForm

ALL, WITHOUT = "map", "map_without_fold_"  # names of the tensors
FITTED = ("scale", "said_scale", "popularity")


def write_closed_form(form: ClosedForm, path: Path, *, folds: bool, made_from: str = "") -> None:
    """Writes maps, penalties and weights, but not the catalogue.

    Args:
        form: A fitted closed form.
        path: The file, safetensors.
        folds: Whether to write the map without each fold, which only training reads.
        made_from: Fingerprint of what it was fitted on, for `read_closed_form`.
    """
    maps = {ALL if fold is None else f"{WITHOUT}{fold}": of for fold, of in form.solved(folds=folds).items()}
    numbers = {name: getattr(form, name) for name in ("decay", "ridge", "item_ridge", "last_apart", *FITTED)}
    tensors = {name: np.ascontiguousarray(of) for name, of in maps.items()}
    save_file(tensors, path, metadata={"numbers": json.dumps(numbers), "made_from": made_from})


def read_closed_form(
    path: Path, items: Float[np.ndarray, "items dim"], bought: Int[np.ndarray, " items"], *, made_from: str = ""
) -> ClosedForm:
    """Reads what `write_closed_form` wrote.

    Args:
        path: The file.
        items: Vector of each item of the catalogue.
        bought: How often training users bought each item.
        made_from: Fingerprint that the file has to have.

    Raises:
        ValueError: If the file has another fingerprint, or does not fit the catalogue.
        OSError, safetensors.SafetensorError: If it cannot be read.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        maps = {None if name == ALL else int(name.removeprefix(WITHOUT)): file.get_tensor(name) for name in names}
    if metadata.get("made_from") != made_from:
        raise ValueError(f"{path}: fitted on other data or with other settings.")
    if None not in maps or any(one.shape[1] != items.shape[1] for one in maps.values()):
        raise ValueError(f"{path}: does not fit item vectors of width {items.shape[1]}.")
    numbers = json.loads(metadata["numbers"])
    fitted = {name: numbers.pop(name) for name in FITTED}
    form = ClosedForm(items, bought, **numbers)
    form.scale, form.said_scale, form.popularity = (float(fitted[name]) for name in FITTED)
    form.restore(maps)
    return form
