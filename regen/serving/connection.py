"""A connection of the server that is closed when its client stops reading."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

UNREAD = 30.0  # seconds that a full send buffer may stay full


class Connection(H11Protocol):
    """uvicorn's connection with a timeout for clients that do not read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cutting: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cutting = self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._keep()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._keep()

    def _keep(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
