"""Client of a vLLM server on this machine that continues soft tokens: completions with `prompt_embeds`.

The server loads embeddings as pickled tensors, which is unsafe with foreign clients. So only loopback addresses are
allowed.

    async with VLLMClient("http://127.0.0.1:8000/v1", name=folder.name, timeout=60) as client:
        await client.check(positions=512)
        ids = await client.complete(embeds, limit=64, stop_ids={2})
"""

import base64
import io
import ipaddress
import json
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import torch
from jaxtyping import Float
from torch import Tensor

SAID = 200  # characters of a server's response in error messages


class VLLMError(RuntimeError):
    """The server is missing, died, serves another model or refused; the message says which, and the fix."""


class VLLMClient:
    """Greedy completions of embedded prompts.

    Args:
        base_url: Address of the server's API, with `/v1`, on a loopback address.
        name: The server's name for the model: the name of its folder (`regen.generation.merged_lm`).
        timeout: Seconds without a token after which a request fails.
        connections: The most requests at one time; others wait.

    Raises:
        ValueError: If the address is not loopback.
    """

    def __init__(self, base_url: str, *, name: str, timeout: float, connections: int = 64) -> None:
        if not is_loopback(urlsplit(base_url).hostname):
            raise ValueError(
                f"vLLM at {base_url}: its embeddings interface is for this machine alone. Give an address like "
                "http://127.0.0.1:8000/v1, through a tunnel where the server is elsewhere."
            )
        self.base_url = base_url.rstrip("/")
        self.name = name
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=connections),
            trust_env=False,  # no proxy for loopback
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def check(self, *, positions: int = 0) -> None:
        """Checks that the server serves the model.

        Args:
            positions: The most positions of a prompt and its narrative.

        Raises:
            VLLMError: If it does not answer, serves another model, or allows fewer positions.
        """
        try:
            async with httpx.AsyncClient(trust_env=False) as http:  # all connections of the other client may be busy
                response = await http.get(f"{self.base_url}/models")
            response.raise_for_status()
            served = {model["id"]: int(model["max_model_len"]) for model in response.json()["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise VLLMError(f"no vLLM answers at {self.base_url} ({_named(error)}).") from error
        if self.name not in served:
            raise VLLMError(f"the vLLM at {self.base_url} serves {', '.join(served) or 'nothing'}, not {self.name}.")
        if served[self.name] < positions:
            raise VLLMError(
                f"the vLLM at {self.base_url} reads {served[self.name]} positions and {positions} are needed. "
                f"Start it with max_model_len={positions} or more."
            )

    async def complete(
        self, embeds: Float[Tensor, "positions lm_dim"], *, limit: int, stop_ids: Collection[int]
    ) -> list[int]:
        """All token ids of `stream`."""
        async with aclosing(self.stream(embeds, limit=limit, stop_ids=stop_ids)) as parts:
            return [token async for part in parts for token in part]

    async def stream(
        self, embeds: Float[Tensor, "positions lm_dim"], *, limit: int, stop_ids: Collection[int]
    ) -> AsyncGenerator[list[int], None]:
        """Token ids as the server writes them. Closing the generator ends the request.

        Args:
            embeds: One prompt without padding (`SoftTokenLM.prefix`).
            limit: The most tokens to write.
            stop_ids: Tokens that end the text.

        Raises:
            VLLMError: If the server refuses, or dies before the end.
        """
        body = {
            "model": self.name,
            "prompt_embeds": encoded(embeds),
            "max_tokens": limit,
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,  # only `stop_token_ids` end a text, as in `RowDecoder`
            "temperature": 0,
            "repetition_penalty": 1,  # overrides the model's generation_config.json
            "stream": True,
            "return_token_ids": True,
        }
        try:
            async with self._http.stream("POST", f"{self.base_url}/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise VLLMError(f"vLLM answered {response.status_code}: {response.text[:SAID]}")
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        yield _tokens(line.removeprefix("data:"))
        except httpx.HTTPError as error:
            raise VLLMError(f"the vLLM at {self.base_url} did not go on ({_named(error)}).") from error
        raise VLLMError(f"the vLLM at {self.base_url} stopped in the middle of an answer.")


def is_loopback(host: str | None) -> bool:
    """Whether a host is a loopback address, which other machines cannot reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def encoded(embeds: Float[Tensor, "positions lm_dim"]) -> str:
    """Embeddings in vLLM's format: base64 of a saved tensor."""
    buffer = io.BytesIO()
    torch.save(embeds.detach().cpu().clone(), buffer)  # cloned, because saving a view saves its whole batch
    return base64.b64encode(buffer.getvalue()).decode()


def _tokens(data: str) -> list[int]:
    try:
        event: Any = json.loads(data)
        if "error" in event:
            raise VLLMError(f"vLLM: {str(event['error'])[:SAID]}")
        return [int(token) for choice in event["choices"] for token in choice["token_ids"] or []]
    except (ValueError, KeyError, TypeError) as error:
        raise VLLMError(f"vLLM sent what is no completion: {data[:SAID]!r}") from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:SAID]}".rstrip(": ")
