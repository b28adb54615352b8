"""A trained recommender: ranks the next items for a history and writes about one of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig

from regen.data.conversation import ConversationBatch
from regen.data.next_item import NextItemBatch
from regen.data.tables import NEXT_ITEM
from regen.generation.decoding import streamed_text, written_tokens
from regen.generation.native_decoder import greedy_decoder
from regen.models.closed_form import ClosedForm
from regen.models.language_model import LanguageModel
from regen.models.next_item import NextItemLM
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.interactions import History, RequestError, shown
from regen.serving.items import Items
from regen.serving.spec import Spec
from regen.serving.trained_model import TrainedModel
from regen.serving.turns import PreparedTurns, TurnsEncoder

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


class Recommender(TrainedModel):
    """Recommends the next purchase and, if it was trained with `task=converse`, writes about it.

        recommender = Recommender.from_pretrained(FOLDER)
        recommender.recommend([{"item_id": "i0000012"}], critique="I'd rather have a cheaper one.")
        recommender.converse([{"item_id": "i0000012"}], turns=[Turn("i0000311", "Not quite. Do you have a red one?")])

    Histories have the same form as for `NarrativeModel.narrate`, but reviews are ignored. Items outside the training
    data are encoded from their texts. A critique moves the ranking; it is never followed as an instruction. The
    recommender keeps no state between calls, so each call passes all turns so far.

    Attributes:
        spec: Contents of the exported `config.json`.
        soft_token_lm: Adapter, LM and readout, in evaluation mode.
        items: Items of the training data, which is the catalogue.
        closed_form: The closed form, with the vector of each item.
        generation: Generation settings; only `max_new_tokens` is read.
        card: The model card, Markdown.
    """

    tasks = ("recommend", "converse")
    closed_form: ClosedForm
    soft_token_lm: NextItemLM

    def __init__(
        self,
        spec: Spec,
        *,
        soft_token_lm: SoftTokenLM,
        lm: LanguageModel,
        items: Items,
        closed_form: ClosedForm,
        generation: GenerationConfig,
        card: str,
    ) -> None:
        assert isinstance(soft_token_lm, NextItemLM)
        super().__init__(spec, soft_token_lm=soft_token_lm, items=items, generation=generation, card=card)
        self.closed_form = closed_form
        self.tokenizer, self.window = lm.tokenizer, lm.window
        self._encode = TurnsEncoder(spec, items, closed_form, lm.tokenizer)
        self._prompts = {name: self._encode.ids(options["prompt"]) for name, options in spec.features.items()}
        self._titles = items.table["title"].fill_null("").to_list()

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.spec.run

    @property
    def feature(self) -> str | None:
        """The feature that it writes about an item; None if it only recommends."""
        return next((name for name in self.spec.features if name != NEXT_ITEM), None)

    @property
    def reads_critiques(self) -> bool:
        """Whether it was trained with critiques."""
        return self._encode.ranking.critiques is not None

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a narrative."""
        return frozenset([int(self.tokenizer.eos_token_id)])

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a narrative."""
        return int(self.generation.max_new_tokens)

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
        prepared = self._encode(history, critique, [(turn.item_id, turn.critique) for turn in turns])
        self._check_window(prepared.positions)
        return prepared

    @torch.no_grad()
    def rank(self, asked: Sequence[tuple[PreparedTurns, int]]) -> list[list[Recommendation]]:
        """For each row the items that fit best, best first: at most as many as the number beside it."""
        batch: NextItemBatch = self._encode.collate([turns for turns, _ in asked]).on(self.soft_token_lm.device)
        last = batch.history_mask.sum(dim=1) - 1
        queries = self.soft_token_lm.queries(batch)[torch.arange(len(asked), device=last.device), last]
        scores = queries @ self.soft_token_lm.items.T + self.soft_token_lm.bias
        return [self._best(row, turns.excluded, k) for row, (turns, k) in zip(scores, asked, strict=True)]

    def about(self, turns: PreparedTurns, item_id: str) -> PreparedNarrative:
        """What the model reads to write about an item after these turns.

        Raises:
            RequestError: If the item is unknown, or the LM's window has no room for a text.
        """
        prefix = turns.positions + 1 + len(self._asked)
        self._check_window(prefix + 1)
        return PreparedNarrative(turns, self._encode.row(item_id), prefix)

    def limit(self, narrative: PreparedNarrative) -> int:
        """The most tokens of this narrative."""
        return min(self.max_new_tokens, self.window - narrative.prefix)

    def longest_row(self, *, critique_tokens: int) -> int:
        """Positions of the longest history, critiques of that many tokens, an item and a narrative.

        Args:
            critique_tokens: Of all critiques together; a model without critiques reads none.
        """
        critiques = critique_tokens if self.reads_critiques else 0
        prompts = sum(map(len, self._prompts.values()))
        return 1 + prompts + self.spec.max_history + critiques + 1 + self.max_new_tokens

    def tokens(self, narrative: PreparedNarrative) -> Iterator[int]:
        """Token ids of one narrative, as they are written."""
        limit = self.limit(narrative)
        decoder = greedy_decoder(self.soft_token_lm, slots=1, length=narrative.prefix + limit, stop_ids=self.stop_ids)
        return written_tokens(decoder, self.collate([narrative]), limit)

    def collate(self, narratives: Sequence[PreparedNarrative]) -> ConversationBatch:
        """The batch that a decoder takes, on the model's device."""
        batch = self._encode.collate([one.turns for one in narratives])
        nothing = torch.zeros(len(narratives), 0, dtype=torch.int64)
        about: ConversationBatch = ConversationBatch(
            **vars(batch),
            item=self.closed_form.items[[one.item for one in narratives]],
            asked=torch.tensor([self._asked] * len(narratives)),
            target=nothing,
            target_mask=nothing.bool(),
        ).on(self.soft_token_lm.device)
        return about

    def _best(self, scores: Float[Tensor, " items"], excluded: list[int], k: int) -> list[Recommendation]:
        scores[excluded] = -torch.inf
        order = scores.argsort(descending=True, stable=True)[:k].tolist()
        return [
            Recommendation(self.items.table["item_id"][row], self._titles[row], float(scores[row]))
            for row in order
            if scores[row].isfinite()
        ]

    def _check_window(self, positions: int) -> None:
        if positions > self.window:
            raise RequestError(
                f"history and critiques take {positions} positions; the LM reads {self.window}. Send fewer turns or "
                "shorter critiques."
            )

    @property
    def _asked(self) -> list[int]:
        """Token ids between the item and the narrative."""
        assert self.feature is not None
        return self._prompts[self.feature]
