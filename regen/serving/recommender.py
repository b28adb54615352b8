"""A trained recommender: ranks the next items for a history and writes about one of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regen.data.batch import pad_rows
from regen.data.conversation import ConversationBatch
from regen.data.next_item import NextItemBatch
from regen.data.tables import NEXT_ITEM
from regen.embeddings.content import embed_texts
from regen.embeddings.vector_store import VECTOR_DTYPE
from regen.generation.decoding import streamed_text, written_tokens
from regen.generation.native_decoder import greedy_decoder
from regen.models.next_item import NextItemLM
from regen.pipeline import load_run
from regen.serving.finished_run import items_of, served_run
from regen.serving.history_encoder import HistoryEncoder
from regen.serving.interactions import History, Interaction, RequestError, read_history, shown
from regen.serving.requests import LONGEST
from regen.training.recommendation import NextItemData
from regen.training.run import LoadedRun

MOST = 1000  # items of one answer
NOTHING_LEFT = "every item was bought or criticised; there is nothing left to recommend."


@dataclass(frozen=True)
class Recommendation:
    """An item and its score.

    Attributes:
        item_id: Id in the training data.
        title: Title of the item.
        score: Higher is better. Scores are comparable within one answer only.
    """

    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Turn:
    """An item that was recommended, and what the user said about it.

    Attributes:
        item_id: Id in the training data.
        critique: The user's words.
    """

    item_id: str
    critique: str


@dataclass(frozen=True)
class Reply:
    """Recommended items and a text about the first one.

    Attributes:
        recommendations: Items, best first.
        narrative: Text about the first item.
    """

    recommendations: list[Recommendation]
    narrative: str


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


@dataclass(frozen=True, eq=False)
class PreparedNarrative:
    """Turns and the item to write about.

    Attributes:
        turns: What comes before the item.
        item: Catalogue row of the item.
        prefix: Positions that the LM reads before the narrative.
    """

    turns: PreparedTurns
    item: int
    prefix: int


class Recommender:
    """Recommends the next purchase and, if it was trained with `task=converse`, writes about it.

        recommender = Recommender.from_run(FOLDER)
        recommender.recommend([{"item_id": "i0000012"}], critique="I'd rather have a cheaper one.")
        recommender.converse([{"item_id": "i0000012"}], turns=[Turn("i0000311", "Not quite. Do you have a red one?")])

    Histories have the same form as for `NarrativeModel.narrate`, but reviews are ignored. Items outside the training
    data are encoded from their texts. A critique moves the ranking; it is never followed as an instruction. The
    recommender keeps no state between calls, so each call passes all turns so far.

    Args:
        loaded: A finished run of `task=recommend` or `task=converse`.

    Attributes:
        run: Name of the run.
        data_fingerprint: Fingerprint of the data that it was trained on.
        items: Items of the training data, which is the catalogue.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        assert isinstance(loaded.model, NextItemLM)
        assert isinstance(loaded.data, NextItemData)
        config, inputs = loaded.run.config, loaded.run.inputs
        self.model, self.data, self.config = loaded.model, loaded.data, config
        self.items = items_of(inputs)
        self.run, self.data_fingerprint = loaded.run.folder.name, inputs.prepared.fingerprint
        self.tokenizer, self.window = loaded.lm.tokenizer, loaded.lm.window
        self._encode = HistoryEncoder(
            config.encoder.name,
            self.data.closed_form.items.shape[1],
            self.items,
            config.content.pretrained if "content" in inputs.encoded else None,
            config.seed,
        )

    @classmethod
    def from_run(cls, folder: Path | str) -> Self:
        """Loads a finished training run.

        Args:
            folder: Folder of the run, `outputs/runs/<…>`.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If the run is not finished, does not recommend, or its encoder cannot encode new histories.
        """
        with served_run(Path(folder), tasks=("recommend", "converse")) as run:
            return cls(load_run(run))

    @property
    def feature(self) -> str | None:
        """The feature that it writes about an item; None if it only recommends."""
        return next((name for name in self.config.feature if name != NEXT_ITEM), None)

    @property
    def reads_critiques(self) -> bool:
        """Whether it was trained with critiques."""
        return self.config.data.critiques

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a narrative."""
        return frozenset([int(self.tokenizer.eos_token_id)])

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a narrative."""
        return int(self.config.evaluation.generation["max_new_tokens"])

    def recommend(
        self,
        history: History,
        critique: str | None = None,
        *,
        turns: Sequence[Turn] = (),
        k: int = 10,
    ) -> list[Recommendation]:
        """The items that fit best, best first. Ties are in catalogue order.

        Args:
            history: Purchases, oldest first.
            critique: What the user says about the last purchase.
            turns: Items recommended after that and what the user said, oldest first. They are not recommended again.
            k: How many items. There are fewer if the catalogue has fewer that were not bought.

        Raises:
            RequestError: If history, critique or turns cannot be read, or `k` is not an integer from 1 to 1,000.
        """
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST:
            raise RequestError(f"k={shown(k)}: it has to be an integer from 1 to {MOST:,}.")
        return self.rank([(self.prepare(history, critique, turns=turns), k)])[0]

    def tell(
        self,
        history: History,
        item_id: str,
        critique: str | None = None,
        *,
        turns: Sequence[Turn] = (),
    ) -> Iterator[str]:
        """Writes about an item for this user, piece by piece. Needs a run of `task=converse`.

        Args:
            history: As for `recommend`.
            item_id: The item to write about.
            critique: As for `recommend`.
            turns: As for `recommend`.

        Raises:
            RequestError: If the model writes nothing, the item is unknown, or another argument cannot be read.
        """
        if self.feature is None:
            raise RequestError("this model only recommends. Use a run of task=converse for texts.")
        narrative = self.about(self.prepare(history, critique, turns=turns), item_id)
        yield from streamed_text(self.tokens(narrative), tokenizer=self.tokenizer)

    def converse(
        self,
        history: History,
        critique: str | None = None,
        *,
        turns: Sequence[Turn] = (),
        k: int = 10,
    ) -> Reply:
        """Recommends items and writes about the first one. Needs a run of `task=converse`.

        Raises:
            RequestError: As for `recommend` and `tell`, or if every item was bought or criticised.
        """
        found = self.recommend(history, critique, turns=turns, k=k)
        if not found:
            raise RequestError(NOTHING_LEFT)
        return Reply(found, "".join(self.tell(history, found[0].item_id, critique, turns=turns)))

    def prepare(self, history: History, critique: str | None = None, *, turns: Sequence[Turn] = ()) -> PreparedTurns:
        """Checks and encodes a history and its turns, without the LM; arguments as for `recommend`.

        Raises:
            RequestError: If one of them cannot be read, or together they exceed the LM's window.
        """
        latest = self.config.data.max_history
        turns = turns[-latest + 1 :]
        seen = [self._row(turn.item_id) for turn in turns]
        read = read_history(history, self.items, latest=latest - len(seen))
        rows = [self.items.row(one.item_id) for one in read]
        said = [None] * (len(rows) - 1) + [critique] + [turn.critique for turn in turns]
        words, spoken = self._said(said)
        fused = np.concatenate([self._vectors(read, rows), self._catalogue(seen)])
        bought = {row for row in rows if row is not None} if self.model.exclude_bought else set()
        positions = 1 + len(self._ids(self.config.feature[NEXT_ITEM].prompt)) + len(fused) + sum(map(len, words))
        self._check_window(positions)
        return PreparedTurns(
            fused=torch.from_numpy(fused),
            queries=torch.from_numpy(self.data.closed_form.queries(fused, spoken)),
            words=words,
            excluded=[*bought, *seen],
            positions=positions,
        )

    @torch.no_grad()
    def rank(self, asked: Sequence[tuple[PreparedTurns, int]]) -> list[list[Recommendation]]:
        """For each row the items that fit best, best first: at most as many as the number beside it."""
        batch = self._batch([turns for turns, _ in asked])
        last = batch.history_mask.sum(dim=1) - 1
        queries = self.model.queries(batch)[torch.arange(len(asked), device=last.device), last]
        scores = queries @ self.model.items.T + self.model.bias
        return [self._best(row, turns.excluded, k) for row, (turns, k) in zip(scores, asked, strict=True)]

    def about(self, turns: PreparedTurns, item_id: str) -> PreparedNarrative:
        """What the model reads to write about an item after these turns.

        Raises:
            RequestError: If the item is unknown, or the LM's window has no room for a text.
        """
        prefix = turns.positions + 1 + len(self._asked)
        self._check_window(prefix + 1)
        return PreparedNarrative(turns, self._row(item_id), prefix)

    def limit(self, narrative: PreparedNarrative) -> int:
        """The most tokens of this narrative."""
        return min(self.max_new_tokens, self.window - narrative.prefix)

    def longest_row(self, *, critique_tokens: int) -> int:
        """Positions of the longest history, critiques of that many tokens, an item and a narrative.

        Args:
            critique_tokens: Of all critiques together; a model without critiques reads none.
        """
        prompts = [self._ids(feature.prompt) for feature in self.config.feature.values()]
        critiques = critique_tokens if self.reads_critiques else 0
        return 1 + sum(map(len, prompts)) + self.config.data.max_history + critiques + 1 + self.max_new_tokens

    def tokens(self, narrative: PreparedNarrative) -> Iterator[int]:
        """Token ids of one narrative, as they are written."""
        limit = self.limit(narrative)
        decoder = greedy_decoder(self.model, slots=1, length=narrative.prefix + limit, stop_ids=self.stop_ids)
        return written_tokens(decoder, self.collate([narrative]), limit)

    def collate(self, narratives: Sequence[PreparedNarrative]) -> ConversationBatch:
        """The batch that a decoder takes, on the model's device."""
        batch = self._batch([one.turns for one in narratives])
        nothing = torch.zeros(len(narratives), 0, dtype=torch.int64, device=self.model.device)
        return ConversationBatch(
            **vars(batch),
            item=self.model.items[[one.item for one in narratives]],
            asked=torch.tensor([self._asked] * len(narratives), device=self.model.device),
            target=nothing,
            target_mask=nothing.bool(),
        )

    def _best(self, scores: Float[Tensor, " items"], excluded: list[int], k: int) -> list[Recommendation]:
        scores[excluded] = -torch.inf
        order = scores.argsort(descending=True, stable=True)[:k].tolist()
        return [
            Recommendation(self.items.table["item_id"][row], self.data.titles[row], float(scores[row]))
            for row in order
            if scores[row].isfinite()
        ]

    def _check_window(self, positions: int) -> None:
        if positions > self.window:
            raise RequestError(
                f"history and critiques take {positions} positions; the LM reads {self.window}. Send fewer turns or "
                "shorter critiques."
            )

    def _row(self, item_id: str) -> int:
        row = self.items.row(item_id)
        if row is None:
            raise RequestError(f"item_id={shown(item_id)}: the catalogue has no such item.")
        return row

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer([text], add_special_tokens=False)["input_ids"][0]
        return ids

    @property
    def _asked(self) -> list[int]:
        """Token ids between the item and the narrative."""
        assert self.feature is not None
        return self._ids(self.config.feature[self.feature].prompt)

    def _said(self, critiques: Sequence[str | None]) -> tuple[list[list[int]], np.ndarray | None]:
        """Token ids of what was said in each turn, and its sentence embedding."""
        texts = [_critique(one) for one in critiques]
        if not self.reads_critiques:
            if any(texts):
                raise RequestError("this model was trained with data.critiques=false and reads no critique.")
            return [[] for _ in texts], None
        vectors = embed_texts(texts, pretrained=self.config.content.pretrained)
        vectors = vectors.astype(VECTOR_DTYPE).astype(np.float32)  # rounded as those of training are kept
        return [self._ids(text) if text else [] for text in texts], vectors

    def _catalogue(self, rows: list[int]) -> Float[np.ndarray, "rows dim"]:
        """Vectors of items of the catalogue; `encoder=none` has none and reads zeros."""
        if self.config.encoder.name == "none":
            return np.zeros((len(rows), self._encode.dim), dtype=np.float32)
        return self.data.closed_form.items[rows].numpy()

    def _vectors(self, read: list[Interaction], rows: list[int | None]) -> Float[np.ndarray, "history dim"]:
        """Vectors of purchases: from the catalogue or, for items outside it, from their texts."""
        known = [at for at, row in enumerate(rows) if row is not None]
        other = [at for at, row in enumerate(rows) if row is None]
        found = np.zeros((len(read), self._encode.dim), dtype=np.float32)
        found[known] = self._catalogue([row for row in rows if row is not None])
        if other and self.config.encoder.name != "none":
            unread = [replace(read[at], item_id=None, rating=None, review=None, review_title=None) for at in other]
            found[other] = self._encode([unread], withhold_final_review=False)[0].fused
        return found

    def _batch(self, rows: Sequence[PreparedTurns]) -> NextItemBatch:
        """Turns as one batch on the model's device, padded at their ends."""
        fused, mask = pad_rows([one.fused for one in rows], 0, left=False)
        length = fused.shape[1]
        nothing: list[list[int]] = [[]]
        said = [ids for one in rows for ids in one.words + nothing * (length - len(one.words))]
        words, words_mask = pad_rows([torch.tensor(ids, dtype=torch.int64) for ids in said], 0, left=False)
        prompt = self._ids(self.config.feature[NEXT_ITEM].prompt)
        items = torch.zeros(len(rows), length, dtype=torch.int64)
        batch: NextItemBatch = NextItemBatch(
            examples=torch.arange(len(rows)),
            fused=fused,
            history_mask=mask,
            items=items,
            queries=pad_rows([one.queries for one in rows], 0, left=False)[0],
            targets=items - 1,
            prompt=torch.tensor([prompt] * len(rows)),
            words=words.view(len(rows), length, -1),
            words_mask=words_mask.view(len(rows), length, -1),
        ).on(self.model.device)
        return batch


def _critique(critique: str | None) -> str:
    """A critique with its white space folded."""
    if critique is not None and not isinstance(critique, str):
        raise RequestError(f"critique={shown(critique)} is no text.")
    text = " ".join((critique or "").encode("utf-8", "replace").decode().split())
    if len(text) > LONGEST:
        raise RequestError(f"the critique has {len(text):,} characters; at most {LONGEST} are read. Shorten it.")
    return text
