"""Any OpenAI-compatible endpoint, hosted or local: what is sent, what came back, and what it means.

The key is read from the environment when it is needed. It is written nowhere and goes only into the request's header.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from regen.narratives.prompts import Request, flat_schema

CHARACTERS_PER_TOKEN = 4.0  # of English text, for estimates before the endpoint counted
SEEDS_PER_ATTEMPT = 10_000
SHOWN = 300  # characters of an endpoint's message that are kept
# Errors of the HTTP library before anything was sent; by name, since the library depends on the version of openai.
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_GATEWAY_TIMEOUTS = (408, 504, 524)  # the model behind the gateway may have gone on, and is then paid for
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Sampling:
    """How the endpoint draws; part of what determines an answer.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus sampling.
        max_tokens: Of an answer.
        seed: Plus the number of the draw, it is sent along; null sends none.
    """

    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Reply:
    """An answer as it came, with its tokens as the endpoint counted them; None where it did not."""

    text: str
    refusal: str | None
    cut_off: bool
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


class AgainError(Exception):
    """The endpoint did not answer this time; `after` is the wait it asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None, *, may_cost: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.may_cost = may_cost


class RejectedError(Exception):
    """The endpoint will never answer this request."""


class ForbiddenError(RejectedError):
    """Status 403: about this request if others are answered, about the key or the account if none is."""


class UnusableEndpointError(Exception):
    """The endpoint will not answer any request."""


class Endpoint:
    """A chat endpoint.

    Args:
        model: As the endpoint names it.
        base_url: Of its API, with `/v1`; null is `$OPENAI_BASE_URL`, or OpenAI's.
        api_key_env: Name of the environment variable with the key; a local endpoint needs none.
        sampling: How it draws.
        timeout: Seconds until a request is given up.

    Raises:
        ValueError: If the URL holds a password, or a hosted endpoint has no usable key.
    """

    def __init__(
        self, *, model: str, base_url: str | None, api_key_env: str, sampling: Sampling, timeout: float
    ) -> None:
        self.model = model
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
        refuse_credentials(self.base_url)
        if timeout <= 0:
            raise ValueError(f"timeout={timeout} has to be above 0 seconds.")
        self.api_key_env = api_key_env
        self._key()
        self.sampling = sampling
        self.timeout = timeout
        self._format = "json_schema"
        self._limit = "max_tokens"
        self._client: openai.AsyncOpenAI | None = None

    def settings(self) -> dict[str, Any]:
        """What determines an answer beside the request; no secret is among it."""
        return {"base_url": self.base_url, "model": self.model, **vars(self.sampling)}

    def _key(self) -> str:
        """Read at each use, so that a pickled endpoint holds no key and workers read their own environment."""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and urlsplit(self.base_url).hostname in _LOCAL:
            return "none"
        if not key:
            raise ValueError(
                f"{self.base_url} needs a key: set the environment variable {self.api_key_env}, with engine=ray on "
                "every machine of the cluster."
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"{self.api_key_env} holds characters that no key has. Copy the key again.")
        return key

    async def __aenter__(self) -> "Endpoint":
        self._client = openai.AsyncOpenAI(
            api_key=self._key(), base_url=self.base_url, timeout=self.timeout, max_retries=0
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await self._client.close()

    async def ask(self, request: Request, *, attempt: int = 0) -> Reply:
        """Sends one request, once.

        Args:
            request: What to ask.
            attempt: How many answers to it were of no use; another seed then gives another answer.

        Raises:
            AgainError: No answer this time.
            RejectedError: Never an answer to this request; `ForbiddenError` if the status is 403.
            UnusableEndpointError: Never an answer to any.
        """
        try:
            return await self._send(request, attempt)
        except openai.APIConnectionError as error:
            raise self._broken_off(error) from None  # the cause may hold the key
        except openai.APIStatusError as error:
            raise self._verdict(error) from None
        except (openai.APIError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise AgainError(self._scrubbed(f"not an answer: {error!r}"), may_cost=True) from None

    async def _send(self, request: Request, attempt: int) -> Reply:
        assert self._client is not None
        while True:
            sent_with = self._format, self._limit
            parameters: dict[str, Any] = {
                "model": self.model,
                "messages": [dict(message) for message in request.messages],
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "response_format": self._response_format(request),
                self._limit: self.sampling.max_tokens,
            }
            if self.sampling.seed is not None:
                parameters["seed"] = self.sampling.seed + request.draw + SEEDS_PER_ATTEMPT * attempt
            try:
                return self._reply(await self._client.chat.completions.create(**parameters))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                changed_meanwhile = sent_with != (self._format, self._limit)  # by another request under way
                if not changed_meanwhile and not self._falls_back(str(error)):
                    raise

    def _response_format(self, request: Request) -> Any:
        if self._format == "json_object":
            return {"type": "json_object"}
        schema = {"name": request.prompt, "strict": True, "schema": flat_schema(request.answer)}
        return {"type": "json_schema", "json_schema": schema}

    def _falls_back(self, message: str) -> bool:
        """Whether the endpoint refused a parameter for which there is another one; the choice stays."""
        lower = message.lower()
        if self._limit == "max_tokens" and "max_completion_tokens" in lower:
            self._limit = "max_completion_tokens"
            return True
        if self._format == "json_schema" and any(
            word in lower for word in ("response_format", "json_schema", "schema", "structured output")
        ):
            self._format = "json_object"
            return True
        return False

    def _reply(self, completion: Any) -> Reply:
        if not getattr(completion, "choices", None):
            raise AgainError(
                self._scrubbed(f"no choices in the answer: {getattr(completion, 'error', None) or completion!r}"),
                may_cost=True,
            )
        choice = completion.choices[0]
        text = (choice.message.content or "").encode("utf-8", "replace").decode()  # no file can hold a lone surrogate
        refusal = getattr(choice.message, "refusal", None) or (
            "content filter" if choice.finish_reason == "content_filter" else None
        )
        usage = completion.usage
        return Reply(
            text=text,
            refusal=self._scrubbed(str(refusal)) if refusal else None,
            cut_off=choice.finish_reason == "length",
            model=str(completion.model or self.model),
            prompt_tokens=_count(getattr(usage, "prompt_tokens", None), least=1),
            completion_tokens=_count(getattr(usage, "completion_tokens", None), least=1 if text else 0),
        )

    def _broken_off(self, error: openai.APIConnectionError) -> AgainError:
        cause = error.__cause__
        if type(cause).__name__ in _NEVER_SENT:
            return AgainError(self._scrubbed(f"{self.base_url} cannot be reached: {cause or error!r}"))
        if isinstance(error, openai.APITimeoutError):
            return AgainError(f"no answer within {self.timeout:g} s", may_cost=True)
        return AgainError(self._scrubbed(f"connection failed: {cause!r}"), may_cost=True)

    def _verdict(self, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        message = self._scrubbed(f"{status}: {_message(error)}")
        if status in (401, 402, 404) or error.code == "insufficient_quota":
            return UnusableEndpointError(message)
        if status == 403:
            return ForbiddenError(message)
        if status in (408, 409, 425, 429) or status >= 500:
            after = _retry_after(error.response.headers)
            return AgainError(message, after, may_cost=status in _GATEWAY_TIMEOUTS)
        return RejectedError(message)

    def _scrubbed(self, message: str) -> str:
        """The start of the message, without the key; the key goes first, so that the cut cannot leave a part of it."""
        key = self._key()
        return (message.replace(key, "***") if len(key) > 4 else message)[:SHOWN]


def refuse_credentials(base_url: str) -> None:
    """Refuses an address with a user name, a password or a query.

    Raises:
        ValueError: With the address's host alone.
    """
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"base_url of the endpoint at {parts.hostname} holds credentials or a query, which would end up in "
            "configs and manifests. Put the key into the environment variable that api_key_env names."
        )


def _count(tokens: Any, *, least: int) -> int | None:
    """A number of tokens as the endpoint reported it; None if it did not, or if it cannot be true."""
    return tokens if isinstance(tokens, int) and tokens >= least else None


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])
    return " ".join(str(error).split())


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, given in seconds, milliseconds or as a date."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif (value := headers.get("retry-after")) is None:
            return None
        else:
            try:
                seconds = float(value)
            except ValueError:
                seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
