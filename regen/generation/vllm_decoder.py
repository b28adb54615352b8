"""Decodes narratives in a vLLM server on this machine; adapter and embeddings stay in this process."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regen.generation.merged_lm import merged_folder
from regen.generation.prepared import Prefixes
from regen.generation.vllm_client import VLLMClient, VLLMError
from regen.models.soft_token_lm import SoftTokenLM

SMOLLM2 = "smollm2"  # the default model of `make llm-server`
SILENCE = 300.0  # seconds without a token after which a request fails


@dataclass(frozen=True)
class VLLMServer:
    """A server of a run's LM.

    Attributes:
        base_url: Address of the API, on a loopback address.
        name: The server's name for the LM.
        start: Command that starts the server.
    """

    base_url: str
    name: str
    start: str


def server_of(model: SoftTokenLM, base_url: str, *, tokenizer: Any, lm: str, run: str) -> VLLMServer:
    """The server that a run needs: of the original LM if it is frozen, else of a folder with LoRA merged.

    Args:
        model: The trained model.
        base_url: As for `VLLMServer`.
        tokenizer: The LM's tokenizer.
        lm: Name of the LM in the run's config.
        run: Name of the run, the start of the merged folder's name.
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
) -> dict[int, list[int]]:
    """Token ids of every example by its index, decoded greedily by a server.

    Args:
        server: A server of this model's LM.
        model: The model; its adapter and embeddings run in this process.
        dataset: A split.
        limits: The most tokens of each narrative.
        stop_ids: Tokens that end a narrative.
        rows: The most requests at one time.

    Raises:
        ValueError: If the server does not answer, serves another LM, or allows fewer positions.
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
                embeds, _ = model.prefix(dataset.collate([index]).on(model.device))
            written[index] = await client.complete(embeds[0], limit=limits[index], stop_ids=stop_ids)

    asyncio.run(decode())
    return written
