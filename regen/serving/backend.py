"""What writes texts for many callers at a time: admission, encoding off the event loop, deadlines, text pieces.

    async with TransformersBackend(model, rows=32, queue=128) as backend:
        with backend.admitted():
            prepared = await backend.prepare(history, feature="purchase_reason")
            async for piece in backend.stream(prepared): ...

Closing a stream before its end frees its row. Decoding is greedy, so the same request gets the same answer.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any, Generic, Self, TypeVar

from regen.generation.prepared import Prepared
from regen.generation.text_pieces import TextPieces
from regen.serving.interactions import History
from regen.serving.model import NarrativeModel

SAMPLING = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""Generation settings that greedy decoding ignores."""

RECENT = 0.1  # weight of the latest text in the running mean of seconds
Result = TypeVar("Result")
Row = TypeVar("Row")


class BackendError(RuntimeError):
    """The backend cannot write now; the same request may succeed later."""


class QueueFullError(RuntimeError):
    """All places are taken; `after` is in how many seconds to ask again."""

    def __init__(self, message: str, *, after: int) -> None:
        super().__init__(message)
        self.after = after


class Backend(ABC, Generic[Row]):
    """Writes texts for the service.

    Args:
        tokenizer: The LM's tokenizer.
        places: The most texts under way at one time, from admission to their last piece.

    Attributes:
        needs: Command that starts a server that the backend needs; None if it needs none.
    """

    needs: str | None = None

    def __init__(self, tokenizer: Any, *, places: int) -> None:
        self.places = places
        self.under_way = 0
        self._tokenizer = tokenizer
        self._seconds = 1.0  # that a text takes, a running mean
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._encoding.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admitted(self, texts: int = 1) -> Iterator[None]:
        """Holds places for a request, all of them or none.

        Raises:
            QueueFullError: If too few are free.
        """
        if self.under_way + texts > self.places:
            raise QueueFullError(
                f"{self.under_way} of {self.places} places are taken, and this request needs {texts}.",
                after=math.ceil(self._seconds),
            )
        self.under_way += texts
        try:
            yield
        finally:
            self.under_way -= texts

    async def stream(self, row: Row, *, deadline: float | None = None) -> AsyncGenerator[str, None]:
        """A text in pieces, as they are written.

        Args:
            row: A prepared input.
            deadline: Time on the event loop's clock.

        Raises:
            TimeoutError: If the deadline passes before the end.
            BackendError: If the text cannot be written now.
        """
        clock = asyncio.get_running_loop().time
        started, pieces = clock(), TextPieces(self._tokenizer)
        async with aclosing(self._tokens(row)) as tokens:
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
        """Checks that the backend can write.

        Raises:
            BackendError: If it cannot; the message says why.
        """

    @abstractmethod
    def _tokens(self, row: Row) -> AsyncGenerator[int, None]:
        """Token ids as they are written. Closing the generator ends the work."""

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        """Runs a function in the encoding thread, one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, work)


class NarrativeBackend(Backend[Prepared]):
    """Writes the narratives of one model.

    Args:
        model: The model. Nothing else may decode with it while the backend runs.
        places: As for `Backend`.

    Raises:
        ValueError: If the model's generation settings change greedy text.
    """

    def __init__(self, model: NarrativeModel, *, places: int) -> None:
        if other := [name for name in model.decoding.beyond_greedy if name not in SAMPLING]:
            raise ValueError(
                f"{model.spec.run}: its generation settings change {', '.join(other)}, and the service decodes "
                "greedily with max_new_tokens alone. Remove them from generation_config.json, or use "
                "NarrativeModel.narrate()."
            )
        super().__init__(model.decoding.tokenizer, places=places)
        self.model = model

    async def prepare(self, history: History, *, feature: str) -> Prepared:
        """`NarrativeModel.prepare` in the encoding thread.

        Raises:
            RequestError: If the history or the feature cannot be used.
        """
        return await self._off_loop(lambda: self.model.prepare(history, feature=feature))
