"""The narrative model: a causal LM continues soft tokens and a prompt with the narrative (paper 4.2)."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from regen.data.batch import Batch, Layout
from regen.models.adapter import Adapter
from regen.models.attention import own_attention
from regen.models.fast_path import FastPath
from regen.models.head_loss import head_loss, logits_loss


class SoftTokenLM(nn.Module):
    """Continues `[begin of sequence] soft tokens, prompt` with the narrative.

    Args:
        lm: A Hugging Face causal LM, tuned or frozen.
        adapter: Maps each fused vector to one soft token; None if the prompt contains the history as text.
        bos_token_id: The LM's beginning-of-sequence token, if it has one.
        learned_positions: Replaces the fused vectors by this number of learned ones (`encoder=none`). Positions are
            counted back from the latest interaction.
        fast_path: Where regen's code replaces that of `transformers`; see `regen.generation.lm_check`.
    """

    def __init__(
        self,
        lm: Any,
        adapter: Adapter | None,
        *,
        bos_token_id: int | None = None,
        learned_positions: int | None = None,
        fast_path: FastPath = FastPath(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.lm = lm
        self.fast_path = fast_path
        self.adapter = adapter
        self.bos_token_id = bos_token_id
        self.positions: nn.Parameter | None = None
        if learned_positions is not None and adapter is not None:
            self.positions = nn.Parameter(torch.randn(learned_positions, adapter.in_dim) / adapter.in_dim**0.5)

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face causal LM without PEFT's wrapper."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    @property
    def decoder(self) -> Any:
        """The LM without its head."""
        return self.causal_lm.get_decoder()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def inputs(self, fused: Float[Tensor, "batch history in_dim"]) -> Float[Tensor, "batch history in_dim"]:
        """The adapter's input: the fused vectors, or the learned vectors instead of them."""
        if self.positions is None:
            return fused
        return self.positions[-fused.shape[1] :].expand(len(fused), -1, -1)

    def prefix(self, batch: Any) -> tuple[Float[Tensor, "batch prefix lm_dim"], Bool[Tensor, "batch prefix"]]:
        """Embeddings and mask of everything before the narrative. Histories and prompts are padded on the left."""
        embed = self.lm.get_input_embeddings()
        prompt = embed(batch.prompt)
        parts = [prompt]
        if self.adapter is not None:
            parts.insert(0, self.adapter(self.inputs(batch.fused), batch.history_mask).to(prompt.dtype))
        if self.bos_token_id is not None:
            parts.insert(0, embed(batch.prompt.new_full((len(prompt), 1), self.bos_token_id)))
        return torch.cat(parts, dim=1), self._prefix_mask(batch)

    def _prefix_mask(self, batch: Batch) -> Bool[Tensor, "batch prefix"]:
        masks = [batch.prompt_mask]
        if self.adapter is not None:
            masks.insert(0, batch.history_mask)
        if self.bos_token_id is not None:
            masks.insert(0, batch.prompt_mask.new_ones(len(batch.prompt), 1))
        return torch.cat(masks, dim=1)

    def layout(self, batch: Batch) -> Layout:
        """Column order without inner padding, and positions and ids of the target tokens.

        Made on the CPU before the batch is moved, so that a training step does not wait for the GPU.
        """
        mask = torch.cat([self._prefix_mask(batch), batch.target_mask[:, 1:]], dim=1)
        order, lengths = flush_order(mask)
        at = torch.arange(order.shape[1], device=mask.device)
        first = lengths - batch.target_mask.sum(dim=1)  # the position that predicts a narrative's first token
        predicts = (at >= first[:, None]) & (at < lengths[:, None])
        return Layout(order, predicts.flatten().nonzero().flatten(), batch.target[batch.target_mask])

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Summed negative log-likelihood of the narratives with their end tokens, and the number of these tokens.

        Padding is moved to the end of each row, so that attention needs no mask but the causal one and a batch is as
        long as its longest row. The LM head runs on the target positions only.
        """
        layout = batch.layout or self.layout(batch)
        prefix, mask = self.prefix(batch)
        said = self.lm.get_input_embeddings()(batch.target[:, :-1])
        embeds = torch.cat([prefix, said], dim=1).take_along_dim(layout.order[..., None], dim=1)
        mask = torch.cat([mask, batch.target_mask[:, 1:]], dim=1).take_along_dim(layout.order, dim=1)
        tokens = batch.target_mask.sum()
        if not self.fast_path.head:
            logits = self.logits(embeds, mask).flatten(0, 1).index_select(0, layout.predicts)
            return logits_loss(logits, layout.targets), tokens
        predicting = self.hidden(embeds, mask).flatten(0, 1).index_select(0, layout.predicts)
        return head_loss(self.causal_lm, predicting, layout.targets), tokens

    def hidden(
        self, embeds: Float[Tensor, "rows length lm_dim"], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length hidden_dim"]:
        """Hidden states of the LM's decoder for rows that are padded on the right."""
        return self._read(self.decoder, embeds, mask).last_hidden_state

    def logits(
        self, embeds: Float[Tensor, "rows length lm_dim"], mask: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "rows length vocabulary"]:
        """Logits of the LM for rows that are padded on the right."""
        return self._read(self.causal_lm, embeds, mask).logits

    def _read(self, part: Any, embeds: Tensor, mask: Tensor) -> Any:
        if not self.fast_path.attention:
            return part(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False)
        with own_attention(self.decoder):
            return part(inputs_embeds=embeds, use_cache=False)

    @torch.no_grad()
    def generate(self, batch: Batch, generation_config: Any) -> Int[Tensor, "batch new"]:
        """Generates the token ids of a narrative for every row, by a Hugging Face `GenerationConfig`."""
        return self.continue_prefix(*self.prefix(batch), generation_config)

    @torch.no_grad()
    def continue_prefix(
        self, prefix: Float[Tensor, "batch prefix lm_dim"], mask: Bool[Tensor, "batch prefix"], generation_config: Any
    ) -> Int[Tensor, "batch new"]:
        """Generates token ids after each prefix with `transformers`; shorter texts are padded on the right."""

        def written(embeds: Tensor, seen: Tensor) -> Tensor:
            ids: Tensor = self.lm.generate(
                inputs_embeds=embeds, attention_mask=seen.long(), generation_config=generation_config
            )
            return ids

        if self.fast_path.padding or mask.all():
            return written(prefix, mask)
        texts = [written(row[seen][None], seen[seen][None])[0] for row, seen in zip(prefix, mask, strict=True)]
        pad = float(generation_config.pad_token_id or 0)
        return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)

    def trained_state(self) -> dict[str, Tensor]:
        """The trainable tensors (adapter, LoRA, learned positions) on the CPU.

        If they are sharded, every process has to call this, and each gets the whole tensors.
        """
        return {name: _whole(p.detach()).cpu() for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Loads a `trained_state`.

        Raises:
            ValueError: If names or shapes differ from those of this model.
        """
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if missing := sorted(own.keys() ^ state.keys()):
            raise ValueError(
                f"The checkpoint does not fit this model: {len(missing)} tensors are in one of them only, the first "
                f"is {missing[0]!r}. Load it with the configuration (adapter, lm, tuning) it was trained with."
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise ValueError(
                    f"The checkpoint does not fit this model: {name!r} is {tuple(state[name].shape)} there and "
                    f"{tuple(parameter.shape)} here. Load it with the configuration (encoder, adapter, lm) it was "
                    "trained with."
                )
            parameter.copy_(_spread_like(parameter, state[name]))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _spread_like(parameter: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


def flush_order(mask: Bool[Tensor, "batch padded"]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
    """Column order that moves padding to the end of each row, cut to the longest row; and the rows' lengths."""
    lengths = mask.sum(dim=1)
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    return order[:, : int(lengths.max())], lengths
