"""What writes narratives for many callers at a time: admission, encoding off the event loop, deadlines, text pieces.

    async with TransformersBackend(model, rows=32, queue=128) as backend:
        with backend.admitted():
            prepared = await backend.prepare(history, feature="purchase_reason")
            async for piece in backend.stream(prepared): ...

Closing a stream before its end gives its row away. Text is greedy, so that the same request has the same answer.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any, Self, TypeVar

from regen.generation.prepared import Prepared
from regen.generation.text_pieces import TextPieces
from regen.serving.model import History, NarrativeModel

SAMPLING = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""Generation settings that greedy decoding does not read."""

RECENT = 0.1  # weight of the latest narrative in the mean time of one
Result = TypeVar("Result")


def longest_row(model: NarrativeModel) -> int:
    """The most positions of a history, its prompt and its narrative."""
    prompts = [str(options["prompt"]) for options in model.spec.features.values()]
    longest = max(len(ids) for ids in model.tokenizer(prompts, add_special_tokens=False)["input_ids"])
    begin = model.soft_token_lm.bos_token_id is not None
    return begin + model.spec.max_history + longest + model.max_new_tokens


class BackendError(RuntimeError):
    """Nothing can be written now; the same request may succeed later."""


class QueueFullError(RuntimeError):
    """There is no place for a request; `after` is when to ask again, in seconds."""

    def __init__(self, message: str, *, after: int) -> None:
        super().__init__(message)
        self.after = after


class Backend(ABC):
    """Writes the narratives of one model.

    Args:
        model: Nothing else may decode with it while the backend runs.
        places: The most narratives under way at one time, from admission to their last piece.

    Raises:
        ValueError: If the model's generation settings ask for more than greedy decoding.

    Attributes:
        needs: The command that starts what has to run beside it, None where it needs nothing.
    """

    needs: str | None = None

    def __init__(self, model: NarrativeModel, *, places: int) -> None:
        if other := [name for name in model.beyond_greedy if name not in SAMPLING]:
            raise ValueError(
                f"{model.spec.run}: its generation settings change {', '.join(other)}, and the service decodes "
                "greedily with max_new_tokens alone. Remove them from generation_config.json, or use "
                "NarrativeModel.narrate()."
            )
        self.model = model
        self.places = places
        self.under_way = 0
        self._seconds = 1.0  # that a narrative takes, a running mean
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._encoding.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admitted(self, narratives: int = 1) -> Iterator[None]:
        """Holds places for a request, all of them or none.

        Raises:
            QueueFullError: If there are not enough.
        """
        if self.under_way + narratives > self.places:
            raise QueueFullError(
                f"{self.under_way} narratives are under way, {narratives} more do not fit into {self.places} places.",
                after=math.ceil(self._seconds),
            )
        self.under_way += narratives
        try:
            yield
        finally:
            self.under_way -= narratives

    async def prepare(self, history: History, *, feature: str) -> Prepared:
        """`NarrativeModel.prepare` in a thread of its own, one history after the other.

        Raises:
            RequestError: If the history or the feature cannot be used.
        """
        return await self._off_loop(lambda: self.model.prepare(history, feature=feature))

    async def stream(self, prepared: Prepared, *, deadline: float | None = None) -> AsyncGenerator[str, None]:
        """The text of a narrative in pieces, as they are written.

        Args:
            prepared: By `prepare`.
            deadline: On the event loop's clock.

        Raises:
            TimeoutError: If the deadline passes before the end.
            BackendError: If the narrative cannot be written now.
        """
        clock = asyncio.get_running_loop().time
        started, pieces = clock(), TextPieces(self.model.tokenizer)
        limit = min(self.model.max_new_tokens, self.model.window_left(prepared))
        async with aclosing(self._tokens(prepared, limit=limit)) as tokens:
            while True:
                async with asyncio.timeout_at(deadline):
                    token = await anext(tokens, None)
                if token is None:
                    break
                if piece := pieces.add(token):
                    yield piece
        self._seconds += RECENT * (clock() - started - self._seconds)
        if rest := pieces.end():
            yield rest

    @abstractmethod
    async def check(self) -> None:
        """Whether it can write.

        Raises:
            BackendError: If it cannot; the message says why.
        """

    @abstractmethod
    def _tokens(self, prepared: Prepared, *, limit: int) -> AsyncGenerator[int, None]:
        """Token ids as they are written, at most `limit`; closing it ends the work."""

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        running: Any = asyncio.get_running_loop().run_in_executor(self._encoding, work)
        result: Result = await running
        return result
