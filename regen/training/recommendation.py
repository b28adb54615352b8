"""Builds data and model of a run that ranks items (`task=recommend` and `task=converse`) from its config."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from tqdm import tqdm

from regen.config.objects import plain
from regen.config.schema import Task, TrainConfig
from regen.data.conversation import ConversationDataset, told_purchases
from regen.data.critiques import Critiques
from regen.data.datamodule import NarrativeDataModule, token_ids
from regen.data.histories import Example
from regen.data.next_item import (
    FULL_CATALOGUE,
    NextItemBatch,
    NextItemDataset,
    catalogue_rows,
    drawn_by_popularity,
    history_vectors,
    purchase_sequences,
)
from regen.data.prepare import load_tables
from regen.data.tables import NEXT_ITEM
from regen.embeddings.fusion import InteractionVectors, item_vectors
from regen.generation.lm_check import fast_path_of
from regen.models.closed_form import ClosedForm
from regen.models.closed_form_file import read_closed_form, write_closed_form
from regen.models.conversation import ConversationLM
from regen.models.language_model import LanguageModel
from regen.models.next_item import NextItemLM
from regen.models.warm_start import initialise
from regen.storage import identity
from regen.storage.atomic import write_atomically
from regen.storage.fingerprints import fingerprint
from regen.storage.identity import Inputs

logger = logging.getLogger(__name__)
CLOSED_FORM = "closed_form.safetensors"
DECAYS, RIDGES = (0.7, 0.85, 1.0), (0.1, 1.0)  # candidates for settings that the config leaves open
VALIDATION_USERS = 500  # for the validation loss; the closed form is calibrated on all validation users
Read = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""A user's purchase vectors, the vectors of the critiques (if any), and the catalogue row of each next item."""


class NextItemData(NarrativeDataModule):
    """The three splits, with the catalogue and the fitted closed form.

    Attributes:
        closed_form: Fitted on all training users; its items are the catalogue.
        titles: Title of each item of the catalogue, or an empty string.
        bought: How often training users bought each item.
    """

    splits: dict[str, NextItemDataset]  # type: ignore[assignment]

    def __init__(self, closed_form: ClosedForm, titles: list[str], bought: np.ndarray, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.closed_form, self.titles, self.bought = closed_form, titles, bought

    def on_before_batch_transfer(self, batch: NextItemBatch, dataloader_idx: int) -> NextItemBatch:  # type: ignore[override]
        """Returns the batch unchanged, because its padding is at the ends of the rows already."""
        return batch


def build_next_item_data(
    config: TrainConfig,
    inputs: Inputs,
    vectors: InteractionVectors,
    lm: LanguageModel,
    critiques: Critiques | None = None,
    *,
    folder: Path | None = None,
) -> NextItemData:
    """The data module of a run: examples in three splits, the catalogue and the closed form.

    Args:
        config: The run's config.
        inputs: Artefacts of the run.
        vectors: Vectors of purchases and items.
        lm: The LM, for its tokenizer and window.
        critiques: The critiques, with `data.critiques=true`.
        folder: Folder of the run, which keeps the fitted closed form.

    Raises:
        DataError: If a split has no user with two purchases, or a history does not fit into the LM's window.
    """
    task, tables = config.task, load_tables(inputs.prepared.path)
    item_of, ids = catalogue_rows(tables), tables.items["item_id"].to_list()
    which: dict[str, Any] = {"max_history": config.data.max_history, "exclude_bought": task.exclude_bought}
    sequences = purchase_sequences(tables, config.split, **which)
    train = sequences["train"]
    bought = np.bincount(np.concatenate([item_of[one.rows] for one in train]), minlength=len(ids))
    rng = np.random.default_rng(config.seed)
    folds = (rng.permutation(len(train)) % task.folds).tolist()
    read = partial(_read, vectors=vectors, critiques=critiques, item_of=item_of, ids=ids)
    catalogue = item_vectors(vectors, len(ids))
    fit = partial(_fitted_form, task, catalogue, bought, sequences, folds, read, item_of)
    form = fit() if folder is None else _kept_form(folder, _fitted_on(config, inputs), catalogue, bought, fit)
    about = next((name for name in config.feature if name != NEXT_ITEM), None)  # the narrative of task=converse
    if about is None:
        examples = sequences | {"validation": sequences["validation"][:VALIDATION_USERS]}
    else:
        examples = told_purchases(tables, config.split, feature=about, **which)
    chosen = [examples["train"][at] for at in rng.permutation(len(examples["train"]))[: task.train_users]]
    make = _dataset_maker(config, lm, form, about, vectors=vectors, critiques=critiques, item_of=item_of, item_ids=ids)
    drawn = drawn_by_popularity(bought) if len(ids) > FULL_CATALOGUE else None
    fold_of = dict(zip([one.user_id for one in train], folds, strict=True))
    splits = {
        "train": make(chosen, every=True, fold=[fold_of[one.user_id] for one in chosen], drawn=drawn),
        "validation": make(examples["validation"], every=False),
        "test": make(examples["test"], every=False),
    }
    counts = ", ".join(f"{len(one):,} {name}" for name, one in sequences.items())
    logger.info("users: %s; the LM is trained on %s", counts, f"{len(chosen):,}")
    return NextItemData(
        form,
        tables.items["title"].fill_null("").to_list(),
        bought,
        splits=splits,
        batch_size=config.training.batch_size,
        eval_batch_size=config.evaluation.batch_size,
        num_workers=config.training.num_workers or 0,
        seed=config.seed,
    )


def _fitted_on(config: TrainConfig, inputs: Inputs) -> str:
    """Fingerprint of everything that decides the closed form."""
    settings = {name: plain(getattr(config, name)) for name in ("task", "data", "encoder", "seed")}
    settings |= {"split": identity.split(plain(config.split)), "version": identity.CLOSED_FORM_VERSION}
    return fingerprint({**settings, "inputs": inputs.fingerprints()})


def _kept_form(
    folder: Path, made_from: str, items: np.ndarray, bought: np.ndarray, fit: Callable[[], ClosedForm]
) -> ClosedForm:
    """Reads the closed form of a run's folder; fits and writes it if the folder has none of these data."""
    path = folder / CLOSED_FORM
    if path.is_file():
        try:
            return read_closed_form(path, items, bought, made_from=made_from)
        except (ValueError, OSError, SafetensorError) as error:
            logger.warning("%s: the closed form is fitted again (%s)", path, error)
    form = fit()
    try:
        write_atomically(path, lambda beside: write_closed_form(form, beside, folds=True, made_from=made_from))
    except OSError as error:  # a run that others share may be read-only
        logger.info("the closed form is not kept (%s)", error)
    return form


def _dataset_maker(
    config: TrainConfig, lm: LanguageModel, form: ClosedForm, about: str | None, **tables: Any
) -> Callable[..., NextItemDataset]:
    """Returns a function that makes a dataset from examples; `about` names the feature of their narratives, if any."""
    options: dict[str, Any] = {
        "queries": form.queries,
        "tokenizer": lm.tokenizer,
        "prompt": config.feature[NEXT_ITEM].prompt,
        "window": lm.window,
        **tables,
    }
    if about is None:
        return partial(NextItemDataset, **options)
    asked, longest = config.feature[about].prompt, config.data.max_narrative_tokens
    return partial(ConversationDataset, **options, asked=asked, max_narrative_tokens=longest)


def _read(
    one: Example, *, vectors: InteractionVectors, critiques: Critiques | None, item_of: np.ndarray, ids: list[str]
) -> Read:
    """What the closed form reads of one user."""
    said = None
    if critiques is not None:
        said = critiques.vectors[critiques.rows(one.user_id, [ids[row] for row in item_of[one.rows[1:]]])]
    return history_vectors(one, vectors, draw=0), said, item_of[one.rows[1:]]


def _fitted_form(
    task: Task,
    items: Float[np.ndarray, "items dim"],
    bought: np.ndarray,
    sequences: dict[str, list[Example]],
    folds: list[int],
    read: Callable[[Example], Read],
    item_of: np.ndarray,
) -> ClosedForm:
    """Fits the closed form on the training users.

    Where the config leaves `task.decay` or `task.ridge` open, the value with the best mean reciprocal rank of the
    validation users is chosen. They also decide whether the last purchase is read apart from the mean.
    """
    unseen = [read(one) for one in sequences["validation"]]
    histories, targets = [(history, said) for history, said, _ in unseen], np.array([rows[-1] for *_, rows in unseen])
    excluded = [item_of[one.rows[:-1]] if task.exclude_bought else item_of[:0] for one in sequences["validation"]]

    def best(decays: Sequence[float], *, last_apart: bool) -> tuple[float, ClosedForm]:
        found = []
        for decay in decays:
            rates = {"decay": decay, "ridge": RIDGES[0], "item_ridge": task.item_ridge}
            form = ClosedForm(items, bought, **rates, last_apart=last_apart)
            form.fit(map(read, tqdm(sequences["train"], desc="closed form", unit="user", leave=False)), folds)
            for ridge in RIDGES if task.ridge is None else [task.ridge]:
                other = form.with_ridge(ridge)
                found.append((other.calibrate(histories, targets, excluded), other))
        return max(found, key=lambda one: one[0])

    of_mean = best(DECAYS if task.decay is None else [task.decay], last_apart=False)
    quality, form = max(of_mean, best([of_mean[1].decay], last_apart=True), key=lambda one: one[0])
    logger.info(
        "closed form: decay %g, ridge %g, popularity %.2g%s: mean reciprocal rank %.4f on %s validation users",
        *(form.decay, form.ridge, form.popularity, ", last purchase apart" if form.last_apart else "", quality),
        f"{len(unseen):,}",
    )
    return form


def build_next_item_model(config: TrainConfig, data: NextItemData, lm: LanguageModel, *, start: bool) -> NextItemLM:
    """Builds the recommender of a run, which also writes narratives with `task=converse`.

    The arguments are those of `regen.training.assembly.build_model`.
    """
    torch.manual_seed(config.seed)
    items, train = data.closed_form.items, data.splits["train"]
    adapter = config.adapter.build(items.shape[1], lm.width)
    tells = isinstance(train, ConversationDataset)
    options: dict[str, Any] = {
        "items": items,
        "bias": data.closed_form.bias,
        "exclude_bought": config.task.exclude_bought,
        "bos_token_id": lm.tokenizer.bos_token_id,
        "learned_positions": config.data.max_history + tells if config.encoder.name == "none" else None,
        "fast_path": fast_path_of(lm),
    }
    tuned = config.tuning.build(lm.working_copy(trainable=config.tuning.name == "full").model)
    if tells:
        model: NextItemLM = ConversationLM(tuned, adapter, weight=config.task.narrative_weight, **options)
    else:
        model = NextItemLM(tuned, adapter, **options)
    if start:
        titled = [row for row, title in enumerate(data.titles) if title]
        inputs, texts = items[titled], [data.titles[row] for row in titled]
        if isinstance(train, ConversationDataset):
            inputs = torch.from_numpy(np.stack([train.mean(row) for row in range(len(train))]))
            texts = [one.text for one in train.examples]
        ids = [one if len(one) else np.array([lm.tokenizer.eos_token_id]) for one in token_ids(lm.tokenizer, texts)]
        initialise(
            adapter,
            ridge=config.adapter.ridge,
            inputs=inputs,
            targets=lm.mean_embeddings(ids),
            interactions=items[titled],
            norm=lm.embedding_norm(),
        )
    return model
