"""The recommender (paper 4.1): an LM reads the history as soft tokens, and its hidden state gives a query for items."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regen.data.next_item import NextItemBatch
from regen.models.adapter import Adapter
from regen.models.fast_path import FastPath
from regen.models.soft_token_lm import SoftTokenLM, flush_order


class NextItemLM(SoftTokenLM):
    """Ranks a catalogue after each purchase of a history.

    The LM reads `[begin of sequence] prompt`, then a turn for each purchase: its soft token and the critique, if any. A
    linear readout of the hidden state at the end of each turn is added to the query of the closed form. An item's score
    is the dot product of query and item. The readout starts at zero, so training starts from the closed form.

    Args:
        lm: A Hugging Face causal LM, tuned or frozen.
        adapter: Maps each fused vector to one soft token; later purchases must not affect it.
        items: Vector of each item of the catalogue.
        bias: What is added to each item's score whoever asks: its popularity.
        exclude_bought: Whether items of the history are excluded from the ranking.
        bos_token_id: The LM's beginning-of-sequence token, if it has one.
        learned_positions: As for `SoftTokenLM`, but counted from the first purchase.
        fast_path: As for `SoftTokenLM`.
    """

    items: Tensor
    bias: Tensor

    def __init__(
        self,
        lm: Any,
        adapter: Adapter,
        *,
        items: Float[Tensor, "items in_dim"],
        bias: Float[Tensor, " items"],
        exclude_bought: bool,
        bos_token_id: int | None = None,
        learned_positions: int | None = None,
        fast_path: FastPath = FastPath(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            lm, adapter, bos_token_id=bos_token_id, learned_positions=learned_positions, fast_path=fast_path
        )
        self.exclude_bought = exclude_bought
        self.register_buffer("items", items, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        width = int(self.causal_lm.config.get_text_config().hidden_size)
        self.readout = nn.Linear(width, items.shape[1], bias=False)
        nn.init.zeros_(self.readout.weight)

    def inputs(self, fused: Float[Tensor, "batch history in_dim"]) -> Float[Tensor, "batch history in_dim"]:
        if self.positions is None:
            return fused
        return self.positions[: fused.shape[1]].expand(len(fused), -1, -1)

    def turns(
        self, batch: NextItemBatch
    ) -> tuple[Float[Tensor, "batch length lm_dim"], Bool[Tensor, "batch length"], Int[Tensor, "batch history"]]:
        """Embeddings of prompt and turns, their mask, and the position of each turn's end without padding."""
        assert self.adapter is not None
        embed = self.lm.get_input_embeddings()
        prompt = batch.prompt
        if self.bos_token_id is not None:
            prompt = nn.functional.pad(prompt, (1, 0), value=self.bos_token_id)
        soft = self.adapter(self.inputs(batch.fused), batch.history_mask).to(embed.weight.dtype)
        turns = torch.cat([soft[:, :, None], embed(batch.words)], dim=2)  # a purchase, then what was said about it
        there = torch.cat([batch.history_mask[..., None], batch.words_mask], dim=2)
        mask = torch.cat([torch.ones_like(prompt, dtype=torch.bool), there.flatten(1)], dim=1)
        ends = prompt.shape[1] + there.sum(dim=2).cumsum(dim=1) - 1
        return torch.cat([embed(prompt), turns.flatten(1, 2)], dim=1), mask, ends

    def queries(self, batch: NextItemBatch) -> Float[Tensor, "batch history in_dim"]:
        """Query for the next item after each purchase."""
        embeds, mask, ends = self.turns(batch)
        order, _ = flush_order(mask)
        hidden = self.hidden(embeds.take_along_dim(order[..., None], dim=1), mask.take_along_dim(order, dim=1))
        return self.read(hidden, ends, batch)

    def read(
        self,
        hidden: Float[Tensor, "batch length hidden_dim"],
        ends: Int[Tensor, "batch history"],
        batch: NextItemBatch,
    ) -> Float[Tensor, "batch history in_dim"]:
        """Adds the readout of the hidden state at the end of each turn to the closed form's queries."""
        hidden = hidden.take_along_dim(ends[..., None], dim=1).float()
        normal = nn.functional.layer_norm(hidden, hidden.shape[-1:])
        return batch.queries + self.readout(normal) / hidden.shape[-1]  # so that a step of Adam is small

    def scores(
        self, queries: Float[Tensor, "rows in_dim"], bought: Int[Tensor, "rows history"]
    ) -> Float[Tensor, "rows items"]:
        """Score of every item of the catalogue; minus infinity for excluded ones.

        Args:
            queries: One query per row.
            bought: Catalogue rows of the items bought before; repetitions are allowed.
        """
        with torch.autocast(queries.device.type, enabled=False):  # in bfloat16 many scores would be equal
            scores = torch.addmm(self.bias, queries.float(), self.items.T)
        return scores.scatter(1, bought, -torch.inf) if self.exclude_bought else scores

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Summed cross-entropy of the next items, and the number of ranked purchases."""
        return self.ranking_loss(self.queries(batch), batch), (batch.targets >= 0).sum()

    def ranking_loss(self, queries: Float[Tensor, "batch history in_dim"], batch: NextItemBatch) -> Float[Tensor, ""]:
        """Summed cross-entropy of the next items, over the whole catalogue or over the batch's negatives."""
        wanted = batch.targets >= 0
        queries, bought, targets = queries[wanted], bought_before(batch)[wanted], batch.targets[wanted]
        if batch.negatives is not None and batch.log_counts is not None:
            scores = self._sampled_scores(queries, bought, targets, batch.negatives, batch.log_counts)
            targets = torch.zeros_like(targets)
        else:
            scores = self.scores(queries, bought)
        return nn.functional.cross_entropy(scores, targets, reduction="sum")

    def _sampled_scores(
        self,
        queries: Float[Tensor, "rows in_dim"],
        bought: Int[Tensor, "rows history"],
        targets: Int[Tensor, " rows"],
        drawn: Int[Tensor, " negatives"],
        log_counts: Float[Tensor, " negatives"],
    ) -> Float[Tensor, "rows candidates"]:
        """Score of the target, then of the negatives with the logQ correction (Bengio and Senecal 2008)."""
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.float()
            right = (queries * self.items[targets]).sum(dim=1) + self.bias[targets]
            others = torch.addmm(self.bias[drawn], queries, self.items[drawn].T) - log_counts
        known = torch.cat([targets[:, None], bought] if self.exclude_bought else [targets[:, None]], dim=1)
        others = others.masked_fill((known[..., None] == drawn).any(dim=1), -torch.inf)
        return torch.cat([right[:, None], others], dim=1)


def bought_before(batch: NextItemBatch) -> Int[Tensor, "batch history history"]:
    """Catalogue rows of all purchases up to each one, filled up with the first purchase's row."""
    length = batch.items.shape[1]
    known = torch.ones(length, length, dtype=torch.bool, device=batch.items.device).tril()
    return torch.where(known, batch.items[:, None], batch.items[:, :1, None])
