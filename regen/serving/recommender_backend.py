"""The backend of a recommender: ranks and writes for many callers at a time, in one thread of this process."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from regen.serving.decoding_thread import DecodingThread, ThreadedBackend
from regen.serving.interactions import History
from regen.serving.recommender import PreparedNarrative, Recommendation, Recommender, Turn
from regen.serving.turns import PreparedTurns

CRITIQUE_TOKENS = 256  # of all turns, for which a row has room; a conversation with more is written alone


class RecommenderBackend(ThreadedBackend[PreparedNarrative]):
    """Ranks several waiting requests in one forward pass, and decodes all narratives together.

    Args:
        recommender: The model. Nothing else may use it while the backend runs.
        rows: The most narratives written at one time.
        queue: The most requests that wait; more are refused.
    """

    def __init__(self, recommender: Recommender, *, rows: int = 32, queue: int = 128) -> None:
        super().__init__(recommender.tokenizer, places=rows + queue)
        self.recommender = recommender
        self.thread = DecodingThread(
            recommender.soft_token_lm,
            recommender.collate,
            rows=rows,
            length=recommender.longest_row(critique_tokens=CRITIQUE_TOKENS),
            stop_ids=recommender.stop_ids,
        )

    async def prepare(self, history: History, critique: str | None, turns: Sequence[Turn]) -> PreparedTurns:
        """`Recommender.prepare` in the encoding thread.

        Raises:
            RequestError: If an argument cannot be read.
        """
        return await self._off_loop(lambda: self.recommender.prepare(history, critique, turns=turns))

    async def rank(self, turns: PreparedTurns, k: int) -> list[Recommendation]:
        """The items that fit best, best first.

        Raises:
            BackendError: If they cannot be ranked now.
        """
        found: list[Recommendation] = await self.thread.call(self.recommender.rank, (turns, k))
        return found

    async def _tokens(self, row: PreparedNarrative) -> AsyncGenerator[int, None]:
        if row.prefix + self.recommender.max_new_tokens > self.thread.length:
            for token in await self.thread.call(self._alone, row):
                yield token
            return
        async with aclosing(self.thread.tokens(row, limit=self.recommender.limit(row))) as tokens:
            async for token in tokens:
                yield token

    def _alone(self, rows: Sequence[PreparedNarrative]) -> list[list[int]]:
        """Token ids of narratives that are too long for a row of the thread."""
        return [list(self.recommender.tokens(row)) for row in rows]
