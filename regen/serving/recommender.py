"""A trained recommender as its user sees it: the next items for a history, after a critique if there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float

from regen.data.next_item import NextItemBatch
from regen.data.prepare import load_tables
from regen.data.tables import NEXT_ITEM
from regen.embeddings.content import embed_texts
from regen.embeddings.encode import load_cf
from regen.embeddings.vector_store import VECTOR_DTYPE
from regen.models.next_item import NextItemLM
from regen.pipeline import load_run, opened_run
from regen.serving.history_encoder import SERVED, HistoryEncoder
from regen.serving.interactions import Interaction, RequestError, read_history, shown
from regen.serving.items import Items
from regen.training.recommendation import NextItemData
from regen.training.run import LoadedRun

LONGEST = 500  # characters of a critique
MOST = 1000  # items of one answer


@dataclass(frozen=True)
class Recommendation:
    """An item and how well it fits.

    Attributes:
        item_id: Of the training data.
        title: Of the item.
        score: Higher is better; comparable within one answer only.
    """

    item_id: str
    title: str
    score: float


class Recommender:
    """Recommends the next purchase.

        recommender = Recommender.from_run(FOLDER)
        recommender.recommend([{"item_id": "i0000012"}], critique="I'd rather have a cheaper one.")

    A history is read as `NarrativeModel.narrate` reads it, but for reviews, which are not read. An item that the
    training data do not have goes through its texts. A critique is read as text and nothing else: what it asks for
    beyond an item has no effect.

    Args:
        loaded: A finished run of `task=recommend`.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        assert isinstance(loaded.model, NextItemLM)
        assert isinstance(loaded.data, NextItemData)
        config, inputs = loaded.run.config, loaded.run.inputs
        tables = load_tables(inputs.prepared.path)
        factors = None
        if "cf" in inputs.encoded:
            factors = np.asarray(load_cf(inputs.encoded["cf"], tables).vectors, dtype=np.float32)
        self.model, self.data, self.config = loaded.model, loaded.data, config
        self.items = Items(tables.items, factors)
        self._tokenizer = loaded.lm.tokenizer
        self._reads_content = "content" in inputs.encoded
        self._encode = HistoryEncoder(
            config.encoder.name,
            self.data.closed_form.items.shape[1],
            self.items,
            config.content.pretrained if self._reads_content else None,
            config.seed,
        )

    @classmethod
    def from_run(cls, folder: Path | str) -> Self:
        """A finished training run.

        Args:
            folder: The run's, `outputs/runs/<…>`.

        Raises:
            FileNotFoundError: If it holds no run.
            ValueError: If the run is not finished, does not recommend, or its encoder reads no history of one's own.
        """
        with opened_run(Path(folder), task="recommend") as run:
            if run.config.encoder.name not in SERVED:
                raise ValueError(
                    f"{folder}: encoder={run.config.encoder.name} reads no history of one's own. Use one of "
                    f"{', '.join(SERVED)}."
                )
            return cls(load_run(run))

    @torch.no_grad()
    def recommend(
        self, history: Sequence[Interaction | Mapping[str, Any]], critique: str | None = None, *, k: int = 10
    ) -> list[Recommendation]:
        """The items that fit best, the best first; of equal scores the first of the catalogue.

        Args:
            history: Purchases, oldest first.
            critique: What the user says about the last one.
            k: How many; fewer where the catalogue has no more that were not bought.

        Raises:
            RequestError: If the history or the critique cannot be read, or `k` is no number from 1 to 1,000.
        """
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST:
            raise RequestError(f"k={shown(k)}: it has to be an integer from 1 to {MOST:,}.")
        words, said = self._said(critique)
        read = read_history(history, self.items, latest=self.config.data.max_history)
        rows = [self.items.row(one.item_id) for one in read]
        batch = self._batch(self._vectors(read, rows), words, said).on(self.model.device)
        known = sorted({row for row in rows if row is not None})
        scores = self.model.queries(batch)[:, -1] @ self.model.items.T + self.model.bias
        if self.model.exclude_bought:
            scores[0, known] = -torch.inf
        order = scores[0].argsort(descending=True, stable=True)[:k].tolist()
        return [
            Recommendation(self.items.table["item_id"][row], self.data.titles[row], float(scores[0, row]))
            for row in order
            if scores[0, row].isfinite()
        ]

    def _said(self, critique: str | None) -> tuple[list[int], np.ndarray | None]:
        """Token ids of a critique and its sentence embedding."""
        if critique is not None and not isinstance(critique, str):
            raise RequestError(f"critique={shown(critique)} is no text.")
        text = " ".join((critique or "").encode("utf-8", "replace").decode().split())
        if len(text) > LONGEST:
            raise RequestError(f"the critique has {len(text):,} characters; at most {LONGEST} are read. Shorten it.")
        if not self.config.data.critiques:
            if text:
                raise RequestError("this model was trained with data.critiques=false and reads no critique.")
            return [], None
        vectors = embed_texts([text or "."], pretrained=self.config.content.pretrained)
        vectors = vectors.astype(VECTOR_DTYPE).astype(np.float32)  # rounded as those of training are kept
        ids: list[int] = self._tokenizer([text], add_special_tokens=False)["input_ids"][0] if text else []
        return ids, vectors[0] if text else np.zeros_like(vectors[0])

    def _vectors(self, read: list[Interaction], rows: list[int | None]) -> Float[np.ndarray, "history dim"]:
        """Vectors of purchases: those of the catalogue, and of what is not in it its texts."""
        found = np.zeros((len(read), self._encode.dim), dtype=np.float32)
        if self.config.encoder.name == "none":
            return found
        strange = [at for at, row in enumerate(rows) if row is None]
        if strange:
            unread = [replace(read[at], item_id=None, rating=None, review=None, review_title=None) for at in strange]
            found[strange] = self._encode([unread], withhold_final_review=False)[0].fused
        for at, row in enumerate(rows):
            if row is not None:
                found[at] = self.data.closed_form.items[row]
        return found

    def _batch(self, fused: np.ndarray, words: list[int], said: np.ndarray | None) -> NextItemBatch:
        length = len(fused)
        spoken = None
        if said is not None:
            spoken = np.zeros((length, len(said)), dtype=np.float32)
            spoken[-1] = said
        ids = torch.zeros(1, length, len(words), dtype=torch.int64)
        ids[0, -1] = torch.tensor(words, dtype=torch.int64)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, -1] = True
        prompt = self._tokenizer(self.config.feature[NEXT_ITEM].prompt, add_special_tokens=False)["input_ids"]
        none = torch.zeros(1, length, dtype=torch.int64)
        return NextItemBatch(
            examples=torch.zeros(1, dtype=torch.int64),
            fused=torch.from_numpy(fused)[None],
            history_mask=torch.ones(1, length, dtype=torch.bool),
            items=none,
            queries=torch.from_numpy(self.data.closed_form.queries(fused, spoken))[None],
            targets=none - 1,
            prompt=torch.tensor([prompt]),
            words=ids,
            words_mask=mask,
        )
