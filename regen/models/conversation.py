"""The conversational model: one LM that ranks the next item and goes on with the narrative about it."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regen.data.conversation import ConversationBatch
from regen.models.head_loss import head_loss, logits_loss
from regen.models.next_item import NextItemLM
from regen.models.soft_token_lm import flush_order


class ConversationLM(NextItemLM):
    """Reads a history, ranks the catalogue, then reads the chosen item as one more soft token and writes about it.

    The LM reads `[begin of sequence] prompt`, the turns of `NextItemLM`, the soft token of the item, and the prompt of
    the narrative. In training the item is the one that was bought.

    Args:
        *args: As for `NextItemLM`.
        weight: Share of the narrative in the loss, from 0 to 1; the rest is the share of the ranking.
        **options: As for `NextItemLM`. Learned positions (`encoder=none`) are one more: the last is the item's.
    """

    def __init__(self, *args: Any, weight: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.weight = weight

    def prefix(self, batch: Any) -> tuple[Float[Tensor, "batch prefix lm_dim"], Bool[Tensor, "batch prefix"]]:
        """Embeddings and mask of everything before the narrative."""
        embeds, mask, _ = self.turns(batch)
        return self._with_item(batch, embeds), self._with_item_mask(batch, mask)

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Weighted sum of both negative log-likelihoods, and how many purchases were looked for."""
        turns, mask, ends = self.turns(batch)
        said = self.lm.get_input_embeddings()(batch.target[:, :-1])
        embeds = torch.cat([self._with_item(batch, turns), said], dim=1)
        mask = torch.cat([self._with_item_mask(batch, mask), batch.target_mask[:, 1:]], dim=1)
        order, lengths = flush_order(mask)
        embeds, mask = embeds.take_along_dim(order[..., None], dim=1), mask.take_along_dim(order, dim=1)
        at = torch.arange(order.shape[1], device=mask.device)
        predicts = (at >= (lengths - batch.target_mask.sum(dim=1))[:, None]) & mask
        hidden, targets = self.hidden(embeds, mask), batch.target[batch.target_mask]
        if self.fast_path.head:
            narrative = head_loss(self.causal_lm, hidden[predicts], targets)
        else:
            narrative = logits_loss(self.logits(embeds, mask)[predicts], targets)
        ranking = self.ranking_loss(self.read(hidden, ends, batch), batch)
        return self.weight * narrative + (1 - self.weight) * ranking, (batch.targets >= 0).sum()

    def _with_item(self, batch: ConversationBatch, turns: Tensor) -> Tensor:
        assert self.adapter is not None
        item = batch.item[:, None]
        if self.positions is not None:
            item = self.positions[-1].expand_as(item)
        soft = self.adapter(item, torch.ones(item.shape[:2], dtype=torch.bool, device=item.device))
        return torch.cat([turns, soft.to(turns.dtype), self.lm.get_input_embeddings()(batch.asked)], dim=1)

    def _with_item_mask(self, batch: ConversationBatch, mask: Tensor) -> Tensor:
        return nn.functional.pad(mask, (0, 1 + batch.asked.shape[1]), value=True)
