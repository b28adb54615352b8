"""ASGI middleware that checks each request: its key, and the size and arrival time of its body."""

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DOCS_FILES = "/docs-files"  # scripts and styles of the documentation page, which need no CDN
OPEN = frozenset({"/health", "/docs", "/openapi.json"})  # paths that need no key, like those below DOCS_FILES

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # names of this machine in a Host header


class Gate:
    """Refuses requests with a wrong key, or a body that is too large or too slow.

    Args:
        app: The service.
        key: Clients have to send it as `Authorization: Bearer KEY`; None turns the check off.
        max_body_bytes: The most bytes of a request's body.
        body_timeout: Seconds in which a body has to arrive.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, max_body_bytes: int, body_timeout: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_timeout = body_timeout
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not self._lets_in(scope["path"], headers):
            problem = JSONResponse(
                {"detail": "Send the service's key as 'Authorization: Bearer KEY'."},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await problem(scope, receive, send)
        elif length.isdecimal() and int(length[:20]) > self.max_body_bytes:
            await JSONResponse({"detail": self._too_large()}, status_code=413)(scope, receive, send)
        else:
            await self.app(scope, self._limited(receive), send)

    def _lets_in(self, path: str, headers: Headers) -> bool:
        if self._expected is None or path in OPEN or path.startswith(f"{DOCS_FILES}/"):
            return True
        return hmac.compare_digest(headers.get("authorization", "").encode("utf-8", "replace"), self._expected)

    def _limited(self, receive: Receive) -> Receive:
        left, whole = self.max_body_bytes, False
        deadline = asyncio.get_running_loop().time() + self.body_timeout

        async def limited() -> Message:
            nonlocal left, whole
            if whole:  # the next message says that the client left, so it has no deadline
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The body did not arrive within {self.body_timeout:g} s.") from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self._too_large())
            whole = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> str:
        return f"The body is larger than {self.max_body_bytes:,} bytes. Send fewer or shorter reviews."
