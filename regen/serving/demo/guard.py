"""Security headers of the demo, and a limit on request bodies."""

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 4 << 20  # fifty reviews of the largest size
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a new version of page or data shows at once
}


class Guard:
    """ASGI middleware: adds `HEADERS` to every response, and refuses bodies that are too long or of unknown length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = _refusal(Headers(scope=scope)) if scope["method"] == "POST" else None
        await (refusal or self.app)(scope, receive, send_guarded)


def _refusal(headers: Headers) -> JSONResponse | None:
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return JSONResponse({"detail": "A Content-Length header is needed."}, 411)
    if int(length) > BODY_BYTES:
        return JSONResponse({"detail": f"The body has {int(length):,} bytes; at most {BODY_BYTES:,} are read."}, 413)
    return None
