"""Encodes a purchase history and the turns of a conversation for a recommender."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regen.data.batch import pad_rows
from regen.data.critiques import LONGEST
from regen.data.datamodule import token_ids
from regen.data.next_item import NextItemBatch
from regen.data.tables import NEXT_ITEM
from regen.embeddings.content import embed_texts
from regen.embeddings.vector_store import VECTOR_DTYPE
from regen.models.closed_form import ClosedForm
from regen.serving.history_encoder import HistoryEncoder
from regen.serving.interactions import History, Interaction, RequestError, read_history, shown
from regen.serving.items import Items
from regen.serving.spec import Spec


@dataclass(frozen=True, eq=False)
class PreparedTurns:
    """Purchases and conversation turns, checked and encoded: one row of the model's input.

    Attributes:
        fused: Vector of each purchase and of each recommended item, oldest first.
        queries: What the closed form looks for after each of them.
        words: Token ids of what the user said about each of them; often empty.
        excluded: Catalogue rows that must not be recommended.
        positions: Positions that the LM reads.
    """

    fused: Float[Tensor, "turns dim"]
    queries: Float[Tensor, "turns dim"]
    words: list[list[int]]
    excluded: list[int]
    positions: int


class TurnsEncoder:
    """Makes rows of the model's input, without the LM.

    Args:
        spec: Specification of the recommender.
        items: Items of the training data.
        closed_form: Its closed form, whose items are the catalogue.
        tokenizer: The LM's tokenizer.
    """

    def __init__(self, spec: Spec, items: Items, closed_form: ClosedForm, tokenizer: Any) -> None:
        assert spec.ranking is not None
        self.spec, self.ranking, self.items, self.closed_form = spec, spec.ranking, items, closed_form
        self._tokenizer = tokenizer
        self._prompt = self.ids(spec.features[NEXT_ITEM]["prompt"])
        self._encode = HistoryEncoder(spec.encoder, spec.dim, items, spec.sentence_encoder, spec.seed)

    def __call__(self, history: History, critique: str | None, turns: Sequence[tuple[str, str]]) -> PreparedTurns:
        """Checks and encodes a history and its turns.

        Args:
            history: Purchases, oldest first.
            critique: What the user says about the last purchase.
            turns: Id of each item recommended after that, and what the user said about it, oldest first.

        Raises:
            RequestError: If one of them cannot be read.
        """
        latest = self.spec.max_history
        turns = turns[-latest + 1 :]
        seen = [self.row(item_id) for item_id, _ in turns]
        read = read_history(history, self.items, latest=latest - len(seen))
        rows = [self.items.row(one.item_id) for one in read]
        words, said = self._said([None] * (len(rows) - 1) + [critique] + [text for _, text in turns])
        fused = np.concatenate([self._vectors(read, rows), self._catalogue(seen)])
        bought = {row for row in rows if row is not None} if self.ranking.exclude_bought else set()
        return PreparedTurns(
            fused=torch.from_numpy(fused),
            queries=torch.from_numpy(self.closed_form.queries(fused, said)),
            words=words,
            excluded=[*bought, *seen],
            positions=1 + len(self._prompt) + len(fused) + sum(map(len, words)),
        )

    def collate(self, rows: Sequence[PreparedTurns]) -> NextItemBatch:
        """One batch, padded at the ends of rows, critiques and histories."""
        fused, mask = pad_rows([one.fused for one in rows], 0, left=False)
        length = fused.shape[1]
        nothing: list[list[int]] = [[]]
        said = [ids for one in rows for ids in one.words + nothing * (length - len(one.words))]
        words, words_mask = pad_rows([torch.tensor(ids, dtype=torch.int64) for ids in said], 0, left=False)
        items = torch.zeros(len(rows), length, dtype=torch.int64)
        return NextItemBatch(
            examples=torch.arange(len(rows)),
            fused=fused,
            history_mask=mask,
            items=items,
            queries=pad_rows([one.queries for one in rows], 0, left=False)[0],
            targets=items - 1,
            prompt=torch.tensor([self._prompt] * len(rows)),
            words=words.view(len(rows), length, -1),
            words_mask=words_mask.view(len(rows), length, -1),
        )

    def row(self, item_id: str) -> int:
        """Catalogue row of an item.

        Raises:
            RequestError: If the catalogue does not have it.
        """
        row = self.items.row(item_id)
        if row is None:
            raise RequestError(f"item_id={shown(item_id)}: the catalogue has no such item.")
        return row

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return token_ids(self._tokenizer, [text])[0].tolist()

    def _said(self, critiques: Sequence[str | None]) -> tuple[list[list[int]], np.ndarray | None]:
        """Token ids and sentence embedding of what was said in each turn."""
        texts = [_critique(one) for one in critiques]
        if self.ranking.critiques is None:
            if any(texts):
                raise RequestError("this model was trained with data.critiques=false and reads no critique.")
            return [[] for _ in texts], None
        vectors = embed_texts(texts, pretrained=self.ranking.critiques)
        vectors = vectors.astype(VECTOR_DTYPE).astype(np.float32)  # the precision in which training stores them
        return [self.ids(text) if text else [] for text in texts], vectors

    def _catalogue(self, rows: list[int]) -> Float[np.ndarray, "rows dim"]:
        """Vectors of items of the catalogue; zeros for `encoder=none`, which ignores them."""
        if self.spec.encoder == "none":
            return np.zeros((len(rows), self._encode.dim), dtype=np.float32)
        return self.closed_form.items[rows].numpy()

    def _vectors(self, read: list[Interaction], rows: list[int | None]) -> Float[np.ndarray, "history dim"]:
        """Vectors of purchases: from the catalogue or, for items outside it, from their texts."""
        known = [at for at, row in enumerate(rows) if row is not None]
        other = [at for at, row in enumerate(rows) if row is None]
        found = np.zeros((len(read), self._encode.dim), dtype=np.float32)
        found[known] = self._catalogue([row for row in rows if row is not None])
        if other and self.spec.encoder != "none":
            unread = [replace(read[at], item_id=None, rating=None, review=None, review_title=None) for at in other]
            found[other] = self._encode([unread], withhold_final_review=False)[0].fused
        return found


def _critique(critique: str | None) -> str:
    """A critique with its white space folded."""
    if critique is not None and not isinstance(critique, str):
        raise RequestError(f"critique={shown(critique)} is no text.")
    text = " ".join((critique or "").encode("utf-8", "replace").decode().split())
    if len(text) > LONGEST:
        raise RequestError(f"the critique has {len(text):,} characters; at most {LONGEST} are read. Shorten it.")
    return text
