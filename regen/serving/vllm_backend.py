"""The backend with the LM in a vLLM server on this machine; adapter and embeddings stay in this process."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from regen.generation.merged_lm import merged_folder
from regen.generation.prepared import Prepared
from regen.generation.vllm_client import VLLMClient, VLLMError
from regen.serving.backend import BackendError, NarrativeBackend
from regen.serving.model import NarrativeModel


class VLLMBackend(NarrativeBackend):
    """Decodes in a vLLM server on this machine, which serves the model's LM with its LoRA merged.

    Args:
        model: The model; its adapter and embeddings run in this process.
        base_url: Address of the server's API, on a loopback address.
        rows: The most requests to the server at one time.
        queue: The most narratives that wait; more are refused.
        timeout: Seconds without a token after which a request fails.

    Raises:
        ValueError: If the address is not loopback.
    """

    def __init__(
        self, model: NarrativeModel, *, base_url: str, rows: int = 32, queue: int = 128, timeout: float = 60.0
    ) -> None:
        super().__init__(model, places=rows + queue)
        folder = merged_folder(model.soft_token_lm, model.decoding.tokenizer, name=model.spec.run)
        self.needs = f"make llm-server MODEL={folder}"
        self._client = VLLMClient(base_url, name=folder.name, timeout=timeout, connections=rows)

    async def __aenter__(self) -> Self:
        try:
            await self.check()
        except BackendError:
            await self._client.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()
        await super().__aexit__()

    async def check(self) -> None:
        try:
            await self._client.check(positions=self.model.longest_row)
        except VLLMError as error:
            raise BackendError(f"{error} Start the right one: {self.needs}") from error

    async def _tokens(self, prepared: Prepared) -> AsyncGenerator[int, None]:
        limit = self.model.decoding.limit(prepared)
        embeds = await self._off_loop(lambda: self._embedded(prepared))
        try:
            async with aclosing(
                self._client.stream(embeds, limit=limit, stop_ids=self.model.decoding.stop_ids)
            ) as parts:
                async for ids in parts:
                    for token in ids:
                        yield token
        except VLLMError as error:
            raise BackendError(str(error)) from error

    @torch.no_grad()
    def _embedded(self, prepared: Prepared) -> Float[Tensor, "positions lm_dim"]:
        embeds, _ = self.model.soft_token_lm.prefix(self.model.decoding.collate([prepared]))
        return embeds[0]
