"""Client of any OpenAI-compatible endpoint, hosted or local.

The key is read from the environment when it is needed. It is sent in the request header and stored nowhere.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

from regen.narratives.prompts import Request, flat_schema

CHARACTERS_PER_TOKEN = 4.0  # estimate for English text
SEEDS_PER_ATTEMPT = 10_000
SHOWN = 300  # characters to keep of an endpoint's message
# HTTP errors before anything was sent. By name, because the HTTP library depends on the version of openai.
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_GATEWAY_TIMEOUTS = (408, 504, 524)  # the model may continue behind the gateway and cost money
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a request.

    Attributes:
        temperature: 0 for greedy decoding.
        top_p: Probability mass of nucleus sampling.
        max_tokens: Maximum length of an answer.
        seed: Base seed, to which the number of the draw is added; None sends no seed.
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
        """Cost in dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Reply:
    """An answer. Token counts are None if the endpoint did not report them."""

    text: str
    refusal: str | None
    cut_off: bool
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


class AgainError(Exception):
    """The attempt failed; another one may succeed.

    Args:
        reason: Error message.
        after: Seconds to wait, if the endpoint asked for a wait.
        may_cost: Whether the attempt may have cost money.
    """

    def __init__(self, reason: str, after: float | None = None, *, may_cost: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.may_cost = may_cost


class RejectedError(Exception):
    """The endpoint rejects this request; a retry is useless."""


class ForbiddenError(RejectedError):
    """Status 403. The cause is this request if others are answered, otherwise the key or the account."""


class UnusableEndpointError(Exception):
    """The endpoint rejects all requests."""


class Endpoint:
    """A chat endpoint.

    Args:
        model: Name of the model at the endpoint.
        base_url: URL of the API, with `/v1`. None for `$OPENAI_BASE_URL`, or OpenAI if that is not set.
        api_key_env: Environment variable with the key. A local endpoint needs none.
        sampling: Sampling settings.
        timeout: Timeout of a request, in seconds.

    Raises:
        ValueError: If the URL has a password, or a hosted endpoint has no usable key.
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
        """The settings that determine an answer, without secrets."""
        return {"base_url": self.base_url, "model": self.model, **vars(self.sampling)}

    def _key(self) -> str:
        """Reads the key at each use, so that a pickled endpoint has no key and workers use their own environment."""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and urlsplit(self.base_url).hostname in _LOCAL:
            return "none"
        if not key:
            raise ValueError(
                f"{self.base_url} needs a key. Set the environment variable {self.api_key_env}, with engine=ray on "
                "every machine of the cluster."
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"{self.api_key_env} has characters that are not allowed in a key. Copy the key again.")
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
        """Sends one request, without retries.

        Args:
            request: The request.
            attempt: Number of unusable answers so far. It changes the seed.

        Raises:
            AgainError: If the attempt failed, but another one may succeed.
            RejectedError: If the endpoint rejects this request; `ForbiddenError` if the status is 403.
            UnusableEndpointError: If the endpoint rejects all requests.
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
                changed_meanwhile = sent_with != (self._format, self._limit)  # by a concurrent request
                if not changed_meanwhile and not self._falls_back(str(error)):
                    raise

    def _response_format(self, request: Request) -> Any:
        if self._format == "json_object":
            return {"type": "json_object"}
        schema = {"name": request.prompt, "strict": True, "schema": flat_schema(request.answer)}
        return {"type": "json_schema", "json_schema": schema}

    def _falls_back(self, message: str) -> bool:
        """Switches to an alternative if the endpoint refused a parameter that has one; returns whether it did."""
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
        text = (
            (choice.message.content or "").encode("utf-8", "replace").decode()
        )  # replaces lone surrogates, which no file can hold
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
        """The start of the message without the key. Truncation comes last, so that it leaves no part of the key."""
        key = self._key()
        return (message.replace(key, "***") if len(key) > 4 else message)[:SHOWN]


def refuse_credentials(base_url: str) -> None:
    """Refuses a URL with a user name, a password or a query.

    Raises:
        ValueError: If it has one. The message names only the host.
    """
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"base_url of the endpoint at {parts.hostname} holds credentials or a query, which would be "
            "stored in configs and manifests. Put the key into the environment variable that api_key_env names."
        )


def _count(tokens: Any, *, least: int) -> int | None:
    """The reported number of tokens; None if it is missing or impossible."""
    return tokens if isinstance(tokens, int) and tokens >= least else None


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])
    return " ".join(str(error).split())


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Requested wait in seconds, from a header in seconds, milliseconds or as a date."""
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
