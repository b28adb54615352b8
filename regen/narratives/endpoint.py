"""Any OpenAI-compatible endpoint, hosted or local: what is sent, what came back, and what it means.

The key comes from the environment and goes nowhere but into the request's header.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai

from regen.narratives.prompts import Request, flat_schema

CHARACTERS_PER_TOKEN = 4.0  # of English text, for estimates before the endpoint counted
SEEDS_PER_ATTEMPT = 10_000
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
    """An answer as it came, with what it cost in tokens."""

    text: str
    refusal: str | None
    cut_off: bool
    model: str
    prompt_tokens: int
    completion_tokens: int


class AgainError(Exception):
    """The endpoint did not answer this time; `after` is the wait it asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None, *, may_cost: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.may_cost = may_cost


class RejectedError(Exception):
    """The endpoint will never answer this request."""


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
        ValueError: If the URL holds a password, or a hosted endpoint has no key.
    """

    def __init__(
        self, *, model: str, base_url: str | None, api_key_env: str, sampling: Sampling, timeout: float
    ) -> None:
        self.model = model
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
        parts = urlsplit(self.base_url)
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"base_url of the endpoint at {parts.hostname} holds credentials or a query, which would end up in "
                f"configs and manifests. Put the key into the environment variable {api_key_env}."
            )
        if timeout <= 0:
            raise ValueError(f"timeout={timeout} has to be above 0 seconds.")
        self._key = os.environ.get(api_key_env) or ("none" if parts.hostname in _LOCAL else "")
        if not self._key:
            raise ValueError(f"{self.base_url} needs a key: set the environment variable {api_key_env}.")
        self.sampling = sampling
        self.timeout = timeout
        self._format = "json_schema"
        self._limit = "max_tokens"
        self._client: openai.AsyncOpenAI | None = None

    def settings(self) -> dict[str, Any]:
        """What determines an answer beside the request; no secret is among it."""
        return {"base_url": self.base_url, "model": self.model, **vars(self.sampling)}

    async def __aenter__(self) -> "Endpoint":
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=self.base_url, timeout=self.timeout, max_retries=0
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
            RejectedError: Never an answer to this request.
            UnusableEndpointError: Never an answer to any.
        """
        try:
            return await self._send(request, attempt)
        except openai.APITimeoutError as error:
            raise AgainError(f"no answer within {self.timeout:g} s", may_cost=True) from error
        except openai.APIConnectionError as error:
            raise AgainError(self._scrubbed(f"connection failed: {error.__cause__!r:.200}"), may_cost=True) from error
        except openai.APIStatusError as error:
            raise self._verdict(error) from error
        except (openai.APIResponseValidationError, json.JSONDecodeError, httpx.HTTPError, AttributeError) as error:
            raise AgainError(self._scrubbed(f"not an answer: {error!r:.200}"), may_cost=True) from error

    async def _send(self, request: Request, attempt: int) -> Reply:
        assert self._client is not None
        while True:
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
                return _reply(await self._client.chat.completions.create(**parameters))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._falls_back(str(error)):
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

    def _verdict(self, error: openai.APIStatusError) -> Exception:
        message = self._scrubbed(f"{error.status_code}: {_message(error)}")
        code = error.code if isinstance(error.code, str) else ""
        if error.status_code in (401, 403, 404) or code == "insufficient_quota":
            return UnusableEndpointError(message)
        if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
            return AgainError(message, _retry_after(error.response.headers))
        return RejectedError(message)

    def _scrubbed(self, message: str) -> str:
        """The message without the key, should the endpoint repeat it."""
        return message.replace(self._key, "***") if len(self._key) > 4 else message


def _reply(completion: Any) -> Reply:
    choice = completion.choices[0]
    usage = completion.usage
    return Reply(
        text=(choice.message.content or "").encode("utf-8", "replace").decode(),  # a lone surrogate fits into no file
        refusal=getattr(choice.message, "refusal", None)
        or ("content filter" if choice.finish_reason == "content_filter" else None),
        cut_off=choice.finish_reason == "length",
        model=completion.model,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
    )


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])[:300]
    return " ".join(str(error).split())[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, given in seconds, milliseconds or as a date."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
