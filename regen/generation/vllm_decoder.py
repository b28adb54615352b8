"""Narratives decoded by a vLLM server on this machine: adapter and embeddings here, the LM there."""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regen.generation.merged_lm import merged_folder
from regen.generation.prepared import Prefixes
from regen.generation.vllm_client import VLLMClient, VLLMError
from regen.models.soft_token_lm import SoftTokenLM

SMOLLM2 = "smollm2"  # what `make llm-server` serves unless it is told otherwise
SILENCE = 300.0  # seconds without a token after which the server is taken for dead


@dataclass(frozen=True)
class VLLMServer:
    """Where a run's LM is served.

    Attributes:
        base_url: Of the API, on a loopback address.
        name: What the server has to call the LM.
        start: The command that starts the right one.
    """

    base_url: str
    name: str
    start: str


def server_of(model: SoftTokenLM, base_url: str, *, tokenizer: Any, lm: str, run: str) -> VLLMServer:
    """The server that a run needs: of the LM itself where it is frozen, of a folder with its LoRA merged otherwise.

    Args:
        model: As trained.
        base_url: As for `VLLMServer`.
        tokenizer: The LM's.
        lm: Name of the LM in the run's config.
        run: Name of the run, with which the merged folder's begins.
    """
    if lm == SMOLLM2 and not any(parameter.requires_grad for parameter in model.lm.parameters()):
        return VLLMServer(base_url, SMOLLM2, "make llm-server")
    folder = merged_folder(model, tokenizer, name=run)
    return VLLMServer(base_url, folder.name, f"make llm-server MODEL={folder}")


def decode_at_vllm(
    server: VLLMServer,
    model: SoftTokenLM,
    dataset: Prefixes,
    *,
    limits: Sequence[int],
    stop_ids: Collection[int],
    rows: int,
) -> Iterator[tuple[int, list[int]]]:
    """What `decode_rows` gives, from a server.

    Args:
        server: Has to serve this model's LM.
        model: Gives soft tokens and embeddings.
        dataset: A split.
        limits: The most tokens of each narrative.
        stop_ids: Tokens that end one.
        rows: The most requests at one time.

    Raises:
        ValueError: If the server is not there, serves another LM, or too short a one.
    """
    written: dict[int, list[int]] = {}
    waiting = iter(range(len(limits)))

    async def decode() -> None:
        async with VLLMClient(server.base_url, name=server.name, timeout=SILENCE, connections=rows) as client:
            longest = max(prefix + limit for prefix, limit in zip(dataset.prefixes, limits, strict=True))
            try:
                await client.check(positions=longest)
            except VLLMError as error:
                raise ValueError(f"evaluation.endpoint: {error} Start the right one: {server.start}") from error
            await asyncio.gather(*(work(client) for _ in range(rows)))

    async def work(client: VLLMClient) -> None:
        for index in waiting:
            with torch.no_grad():
                embeds, _ = model.prefix(dataset.collate([index]).on(next(model.parameters()).device))
            written[index] = await client.complete(embeds[0], limit=limits[index], stop_ids=stop_ids)

    asyncio.run(decode())
    yield from written.items()
