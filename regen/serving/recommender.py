"""A trained recommender as its user sees it: the next items for a history, and what it says about the first of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float

from regen.data.batch import pad_rows
from regen.data.conversation import ConversationBatch
from regen.data.next_item import NextItemBatch
from regen.data.prepare import load_tables
from regen.data.tables import NEXT_ITEM
from regen.embeddings.content import embed_texts
from regen.embeddings.encode import load_cf
from regen.embeddings.vector_store import VECTOR_DTYPE
from regen.generation.decoding import streamed_text
from regen.generation.native_decoder import greedy_decoder
from regen.models.next_item import NextItemLM
from regen.pipeline import load_run, opened_run
from regen.serving.history_encoder import SERVED, HistoryEncoder
from regen.serving.interactions import Interaction, RequestError, read_history, shown
from regen.serving.items import Items
from regen.serving.requests import LONGEST
from regen.training.recommendation import NextItemData
from regen.training.run import LoadedRun

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


@dataclass(frozen=True)
class Turn:
    """An item that was recommended, and what the user said about it.

    Attributes:
        item_id: Of the training data.
        critique: In the user's words.
    """

    item_id: str
    critique: str


@dataclass(frozen=True)
class Reply:
    """What a model recommends and says.

    Attributes:
        recommendations: The best first.
        narrative: About the first of them.
    """

    recommendations: list[Recommendation]
    narrative: str


class Recommender:
    """Recommends the next purchase, and after `task=converse` tells of it.

        recommender = Recommender.from_run(FOLDER)
        recommender.recommend([{"item_id": "i0000012"}], critique="I'd rather have a cheaper one.")
        recommender.converse([{"item_id": "i0000012"}], turns=[Turn("i0000311", "Not quite. Do you have a red one?")])

    A history is read as `NarrativeModel.narrate` reads it, but for reviews, which are not read. An item that the
    training data do not have goes through its texts. A critique is read as text and nothing else: what it asks for
    beyond an item has no effect. Nothing is kept between calls: each brings all turns so far.

    Args:
        loaded: A finished run of `task=recommend` or `task=converse`.

    Attributes:
        run: Name of the run.
        data_fingerprint: Of the data that it was trained on.
        items: Those that the model knows.
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
        self.run, self.data_fingerprint = loaded.run.folder.name, inputs.prepared.fingerprint
        self._tokenizer, self._window = loaded.lm.tokenizer, loaded.lm.window
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
        with opened_run(Path(folder), tasks=("recommend", "converse")) as run:
            if run.config.encoder.name not in SERVED:
                raise ValueError(
                    f"{folder}: encoder={run.config.encoder.name} reads no history of one's own. Use one of "
                    f"{', '.join(SERVED)}."
                )
            return cls(load_run(run))

    @property
    def feature(self) -> str | None:
        """What it writes about an item; None where it only recommends."""
        return next((name for name in self.config.feature if name != NEXT_ITEM), None)

    @property
    def reads_critiques(self) -> bool:
        """Whether it was trained with what users said."""
        return self.config.data.critiques

    @torch.no_grad()
    def recommend(
        self,
        history: Sequence[Interaction | Mapping[str, Any]],
        critique: str | None = None,
        *,
        turns: Sequence[Turn] = (),
        k: int = 10,
    ) -> list[Recommendation]:
        """The items that fit best, the best first; of equal scores the first of the catalogue.

        Args:
            history: Purchases, oldest first.
            critique: What the user says about the last one.
            turns: What was recommended after that and criticised, oldest first; it is not recommended again.
            k: How many; fewer where the catalogue has no more that were not bought.

        Raises:
            RequestError: If history, critique or turns cannot be read, or `k` is no number from 1 to 1,000.
        """
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST:
            raise RequestError(f"k={shown(k)}: it has to be an integer from 1 to {MOST:,}.")
        batch, bought, seen = self._read(history, critique, turns)
        scores = self.model.queries(batch)[:, -1] @ self.model.items.T + self.model.bias
        scores[0, (bought if self.model.exclude_bought else []) + seen] = -torch.inf
        order = scores[0].argsort(descending=True, stable=True)[:k].tolist()
        return [
            Recommendation(self.items.table["item_id"][row], self.data.titles[row], float(scores[0, row]))
            for row in order
            if scores[0, row].isfinite()
        ]

    def tell(
        self,
        history: Sequence[Interaction | Mapping[str, Any]],
        item_id: str,
        critique: str | None = None,
        *,
        turns: Sequence[Turn] = (),
    ) -> Iterator[str]:
        """The narrative about an item for this user, in pieces, as it is written. Needs a run of `task=converse`.

        Args:
            history: As for `recommend`.
            item_id: The item that it speaks of.
            critique: As for `recommend`.
            turns: As for `recommend`.

        Raises:
            RequestError: If the model writes nothing, the item is unknown, or the rest cannot be read.
        """
        if self.feature is None:
            raise RequestError("this model only recommends. One of task=converse tells of the item, too.")
        batch, _, _ = self._read(history, critique, turns)
        asked = self._ids(self.config.feature[self.feature].prompt)
        batch = ConversationBatch(
            **vars(batch),
            item=self.model.items[self._row(item_id)][None],
            asked=torch.tensor([asked], device=self.model.device),
            target=torch.zeros(1, 0, dtype=torch.int64),
            target_mask=torch.zeros(1, 0, dtype=torch.bool),
        )
        left = self._left(batch, 1 + len(asked) + 1)  # the item, the prompt, and at least one token of the narrative
        limit = min(int(self.config.evaluation.generation["max_new_tokens"]), left + 1)
        stop = frozenset([int(self._tokenizer.eos_token_id)])
        decoder = greedy_decoder(self.model, slots=1, length=self._window - left - 1 + limit, stop_ids=stop)
        yield from streamed_text(decoder, batch, limit, tokenizer=self._tokenizer)

    def converse(
        self,
        history: Sequence[Interaction | Mapping[str, Any]],
        critique: str | None = None,
        *,
        turns: Sequence[Turn] = (),
        k: int = 10,
    ) -> Reply:
        """`recommend`, and what there is to say about the first item. Needs a run of `task=converse`.

        Raises:
            RequestError: As those of `recommend` and `tell`; or if every item was bought or criticised.
        """
        found = self.recommend(history, critique, turns=turns, k=k)
        if not found:
            raise RequestError("every item was bought or criticised; there is nothing left to recommend.")
        return Reply(found, "".join(self.tell(history, found[0].item_id, critique, turns=turns)))

    def _read(
        self, history: Sequence[Interaction | Mapping[str, Any]], critique: str | None, turns: Sequence[Turn]
    ) -> tuple[NextItemBatch, list[int], list[int]]:
        """One row of input; catalogue rows of what was bought, and of what was recommended before."""
        latest = self.config.data.max_history
        seen = [self._row(turn.item_id) for turn in turns][-latest + 1 :]
        read = read_history(history, self.items, latest=latest - len(seen))
        rows = [self.items.row(one.item_id) for one in read]
        said = [None] * (len(rows) - 1) + [critique] + [turn.critique for turn in turns][-latest + 1 :]
        words, spoken = self._said(said)
        fused = self._vectors(read, rows)
        if seen and self.config.encoder.name != "none":
            fused = np.concatenate([fused, self.data.closed_form.items[seen].numpy()])
        elif seen:
            fused = np.zeros((len(said), self._encode.dim), dtype=np.float32)
        bought = sorted({row for row in rows if row is not None})
        batch = self._batch(fused, words, spoken).on(self.model.device)
        self._left(batch, 0)
        return batch, bought, seen

    def _left(self, batch: NextItemBatch, more: int) -> int:
        """Positions that are left in the LM's window behind a history and so many more."""
        turns = batch.history_mask.shape[1] + int(batch.words_mask.sum())
        positions = 1 + batch.prompt.shape[1] + turns + more
        if positions > self._window:
            raise RequestError(
                f"history and critiques take {positions} positions; the LM reads {self._window}. Send fewer turns or "
                "shorter critiques."
            )
        return self._window - positions

    def _row(self, item_id: str) -> int:
        row = self.items.row(item_id)
        if row is None:
            raise RequestError(f"item_id={shown(item_id)}: the catalogue has no such item.")
        return row

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer([text], add_special_tokens=False)["input_ids"][0]
        return ids

    def _said(self, critiques: Sequence[str | None]) -> tuple[list[list[int]], np.ndarray | None]:
        """Token ids of what was said in each turn, and its sentence embedding."""
        texts = [self._text(one) for one in critiques]
        if not self.config.data.critiques:
            if any(texts):
                raise RequestError("this model was trained with data.critiques=false and reads no critique.")
            return [[] for _ in texts], None
        told = sorted({text for text in texts if text} or {"."})
        vectors = embed_texts(told, pretrained=self.config.content.pretrained)
        vectors = vectors.astype(VECTOR_DTYPE).astype(np.float32)  # rounded as those of training are kept
        spoken = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
        for at, text in enumerate(texts):
            if text:
                spoken[at] = vectors[told.index(text)]
        return [self._ids(text) if text else [] for text in texts], spoken

    @staticmethod
    def _text(critique: str | None) -> str:
        if critique is not None and not isinstance(critique, str):
            raise RequestError(f"critique={shown(critique)} is no text.")
        text = " ".join((critique or "").encode("utf-8", "replace").decode().split())
        if len(text) > LONGEST:
            raise RequestError(f"the critique has {len(text):,} characters; at most {LONGEST} are read. Shorten it.")
        return text

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

    def _batch(self, fused: np.ndarray, words: list[list[int]], spoken: np.ndarray | None) -> NextItemBatch:
        ids, mask = pad_rows([torch.tensor(row, dtype=torch.int64) for row in words], 0, left=False)
        none = torch.zeros(1, len(fused), dtype=torch.int64)
        return NextItemBatch(
            examples=torch.zeros(1, dtype=torch.int64),
            fused=torch.from_numpy(fused)[None],
            history_mask=torch.ones(1, len(fused), dtype=torch.bool),
            items=none,
            queries=torch.from_numpy(self.data.closed_form.queries(fused, spoken))[None],
            targets=none - 1,
            prompt=torch.tensor([self._ids(self.config.feature[NEXT_ITEM].prompt)]),
            words=ids[None],
            words_mask=mask[None],
        )
