"""The conversational model: one LM ranks the next item and then writes the narrative about it."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regen.data.conversation import ConversationBatch
from regen.models.head_loss import head_loss, logits_loss
from regen.models.next_item import NextItemLM
from regen.models.soft_token_lm import flush_order


class ConversationLM(NextItemLM):
    """Ranks the catalogue after a history, then writes about an item that it reads as one more soft token.

    The LM reads `[begin of sequence] prompt`, the turns of `NextItemLM`, the soft token of the item, and the prompt of
    the narrative. In training the item is the one that was bought.

    Args:
        *args: As for `NextItemLM`.
        weight: Weight of the narrative's loss, from 0 to 1; the ranking's loss has the rest.
        **options: As for `NextItemLM`. With `encoder=none` there is one more learned position, for the item.
    """

    def __init__(self, *args: Any, weight: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.weight = weight

    def prefix(self, batch: Any) -> tuple[Float[Tensor, "batch prefix lm_dim"], Bool[Tensor, "batch prefix"]]:
        """Embeddings and mask of everything before the narrative."""
        embeds, mask, _ = self.turns(batch)
        return self._with_item(batch, embeds), self._with_item_mask(batch, mask)

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Weighted sum of both negative log-likelihoods, and the number of ranked purchases."""
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
