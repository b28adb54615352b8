"""From a typed config to the parts of a run of `task=recommend`: data and model."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from regen.config.schema import TrainConfig
from regen.data.critiques import Critiques
from regen.data.datamodule import NarrativeDataModule
from regen.data.histories import Example
from regen.data.next_item import (
    NextItemBatch,
    NextItemDataset,
    catalogue_rows,
    history_vectors,
    purchase_sequences,
)
from regen.data.prepare import load_tables
from regen.data.tables import NEXT_ITEM
from regen.embeddings.fusion import InteractionVectors, item_vectors
from regen.generation.lm_check import fast_path_of
from regen.models.closed_form import ClosedForm
from regen.models.language_model import LanguageModel
from regen.models.next_item import NextItemLM
from regen.models.warm_start import initialise

logger = logging.getLogger(__name__)
DECAYS, RIDGES = (0.7, 0.85, 1.0), (0.1, 1.0)  # tried where the config names none
Read = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""Of a user: vectors of the purchases, of what was said about each, and the item after each of them."""
VALIDATION_USERS = 500  # whose loss is watched; the closed form is calibrated on all


class NextItemData(NarrativeDataModule):
    """The three splits, with the catalogue and the closed form fitted on all training users.

    Attributes:
        closed_form: Its items are the catalogue.
        titles: Title of each item of the catalogue; empty where it has none.
        bought: How often training users bought each item.
    """

    splits: dict[str, NextItemDataset]  # type: ignore[assignment]

    def __init__(self, closed_form: ClosedForm, titles: list[str], bought: np.ndarray, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.closed_form, self.titles, self.bought = closed_form, titles, bought

    def on_before_batch_transfer(self, batch: NextItemBatch, dataloader_idx: int) -> NextItemBatch:  # type: ignore[override]
        """The batch as it is: its padding stands at the rows' ends already."""
        return batch


def build_next_item_data(
    config: TrainConfig,
    prepared: Path,
    vectors: InteractionVectors,
    lm: LanguageModel,
    critiques: Critiques | None = None,
) -> NextItemData:
    """Users by split, the catalogue, and the closed form.

    Args:
        config: The run's config.
        prepared: Folder of the prepared tables.
        vectors: Of purchases and items.
        lm: Gives the tokenizer and the window.
        critiques: What users said, with `data.critiques`.

    Raises:
        DataError: If a split has no user with two purchases, or a history does not fit into the LM's window.
    """
    task, tables = config.task, load_tables(prepared)
    item_of = catalogue_rows(tables)
    sequences = purchase_sequences(
        tables, config.split, max_history=config.data.max_history, exclude_bought=task.exclude_bought
    )
    train, unseen = sequences["train"], sequences["validation"]
    bought = np.bincount(np.concatenate([item_of[one.rows] for one in train]), minlength=len(tables.items))
    ids = tables.items["item_id"].to_list()
    rng = np.random.default_rng(config.seed)
    folds = rng.permutation(len(train)) % task.folds
    chosen = rng.permutation(len(train))[: task.train_users]

    def read(one: Example) -> Read:
        said = None
        if critiques is not None:
            said = critiques.vectors[critiques.rows(one.user_id, [ids[row] for row in item_of[one.rows[1:]]])]
        return history_vectors(one, vectors, draw=0), said, item_of[one.rows[1:]]

    catalogue = item_vectors(vectors, len(tables.items))
    form = _best_form(
        [
            ClosedForm(catalogue, bought, decay=decay, ridge=RIDGES[0], item_ridge=task.item_ridge)
            for decay in (DECAYS if task.decay is None else [task.decay])
        ],
        RIDGES if task.ridge is None else [task.ridge],
        train=lambda: map(read, train),
        folds=folds.tolist(),
        unseen=[read(one) for one in unseen],
        bought=[item_of[one.rows[:-1]] if task.exclude_bought else item_of[:0] for one in unseen],
    )

    def dataset(examples: list[Example], **options: object) -> NextItemDataset:
        return NextItemDataset(
            examples,
            vectors,
            item_of=item_of,
            queries=form.queries,
            tokenizer=lm.tokenizer,
            prompt=config.feature[NEXT_ITEM].prompt,
            window=lm.window,
            critiques=critiques,
            item_ids=ids,
            **options,  # type: ignore[arg-type]
        )

    watched = unseen[:VALIDATION_USERS]
    splits = {
        "train": dataset([train[at] for at in chosen], every=True, fold=folds[chosen].tolist()),
        "validation": dataset(watched, every=False),
        "test": dataset(sequences["test"], every=False),
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


def _best_form(
    forms: Sequence[ClosedForm],
    ridges: Sequence[float],
    *,
    train: Callable[[], Iterable[Read]],
    folds: Sequence[int],
    unseen: Sequence[Read],
    bought: Sequence[np.ndarray],
) -> ClosedForm:
    """Fits each form with each penalty; the one with the best mean reciprocal rank of the validation users."""
    histories, targets = [(history, said) for history, said, _ in unseen], np.array([items[-1] for *_, items in unseen])
    found = []
    for form in tqdm(forms, desc="closed form", leave=False):
        form.fit(train(), folds)
        for ridge in ridges:
            other = form.with_ridge(ridge)
            found.append((other.calibrate(histories, targets, bought), other))
    quality, best = max(found, key=lambda one: one[0])
    logger.info(
        "closed form: decay %g, ridge %g, popularity %.2g: mean reciprocal rank %.4f on %s validation users",
        best.decay,
        best.ridge,
        best.popularity,
        quality,
        f"{len(unseen):,}",
    )
    return best


def build_next_item_model(config: TrainConfig, data: NextItemData, lm: LanguageModel, *, start: bool) -> NextItemLM:
    """Adapter, tuned LM and readout over the catalogue.

    Args:
        config: The run's config.
        data: Gives the catalogue and the closed form.
        lm: The pristine LM; it stays so.
        start: Whether to initialise the adapter; a model whose weights are loaded next needs no start.
    """
    torch.manual_seed(config.seed)
    items = data.closed_form.items
    adapter = config.adapter.build(items.shape[1], lm.width)
    model = NextItemLM(
        config.tuning.build(lm.working_copy(trainable=config.tuning.name == "full").model),
        adapter,
        items=items,
        bias=data.closed_form.bias,
        exclude_bought=config.task.exclude_bought,
        bos_token_id=lm.tokenizer.bos_token_id,
        learned_positions=config.data.max_history if config.encoder.name == "none" else None,
        fast_path=fast_path_of(lm),
    )
    if start:
        titled = [row for row, title in enumerate(data.titles) if title]
        initialise(
            adapter,
            init=config.adapter.init,
            strength=config.adapter.ridge,
            inputs=items[titled],
            targets=_title_embeddings(lm, [data.titles[row] for row in titled]),
            interactions=items[titled],
            norm=lm.embedding_norm(),
        )
    return model


@torch.no_grad()
def _title_embeddings(lm: LanguageModel, titles: list[str]) -> Float[torch.Tensor, "titles lm_dim"]:
    """Mean input embedding of each title's tokens: what a soft token starts to say."""
    embed = lm.model.get_input_embeddings()
    ids = lm.tokenizer(titles, add_special_tokens=False)["input_ids"]
    return torch.stack([embed(torch.tensor(one or [lm.tokenizer.eos_token_id])).float().mean(dim=0) for one in ids])
