"""Examples of `task=converse`: a user's purchases, the next item, and a narrative about that item."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regen.config.schema import Split
from regen.data.batch import pad_rows
from regen.data.datamodule import token_ids
from regen.data.histories import Example, build_examples
from regen.data.next_item import NextItemBatch, NextItemDataset
from regen.data.splits import NAMES
from regen.data.tables import DataError, Tables


def told_purchases(
    tables: Tables, split: Split, *, feature: str, max_history: int, exclude_bought: bool
) -> dict[str, list[Example]]:
    """Narratives with the purchases up to the item that they are about, by split. That item is the one to predict.

    Narratives about a user's first purchase are dropped.

    Args:
        tables: Prepared tables.
        split: Any split.
        feature: A feature about one item.
        max_history: Maximum length of a history.
        exclude_bought: Whether only the first purchase of an item counts. Narratives about later ones are dropped.

    Raises:
        DataError: If no narrative is left in a split.
    """
    items = tables.interactions["item_id"].to_numpy()
    found: dict[str, list[Example]] = {name: [] for name in NAMES}
    for one in build_examples(tables, withhold={feature: True}, max_history=len(items), split=split):
        rows = one.rows
        if exclude_bought:
            rows = rows[np.sort(np.unique(items[rows], return_index=True)[1])]
        rows = rows[-max_history - 1 :]
        if one.split is not None and len(rows) > 1 and rows[-1] == one.rows[-1]:
            found[one.split].append(replace(one, rows=rows, withheld=np.ones(len(rows), dtype=bool)))
    for name, examples in found.items():
        if not examples:
            raise DataError(f"The {name} split has no {feature} about an item that was bought after another one.")
    return found


@dataclass
class ConversationBatch(NextItemBatch):
    """A `NextItemBatch` with an item and a narrative about it for each history.

    Attributes:
        item: Vector of the item that the narrative is about.
        asked: Token ids of the narrative's prompt, after the item; the same in all rows.
        target: Token ids of the narrative and its end token.
        target_mask: True where `target` holds a token.
    """

    item: Float[Tensor, "batch in_dim"]
    asked: Int[Tensor, "batch asked"]
    target: Int[Tensor, "batch target"]
    target_mask: Bool[Tensor, "batch target"]


class ConversationDataset(NextItemDataset):
    """Narratives of one split with the purchases before them.

    Args:
        examples: From `told_purchases`.
        *args: As for `NextItemDataset`.
        asked: Prompt of the narrative.
        max_narrative_tokens: Narratives are truncated to this length; None for no limit.
        **options: As for `NextItemDataset`.

    Raises:
        DataError: If prompts, history and narrative do not fit into the LM's window.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *args: Any,
        asked: str,
        max_narrative_tokens: int | None,
        **options: Any,
    ) -> None:
        super().__init__(examples, *args, **options)
        tokenizer, end = options["tokenizer"], [options["tokenizer"].eos_token_id]
        self.asked = torch.tensor(tokenizer(asked, add_special_tokens=False)["input_ids"])
        texts = token_ids(tokenizer, [one.text for one in self.examples])
        self.narratives = [np.concatenate([ids[:max_narrative_tokens], end]) for ids in texts]
        self.prefixes = [length + 1 + len(self.asked) for length in self.lengths]
        self.lengths = [before + len(ids) for before, ids in zip(self.prefixes, self.narratives, strict=True)]
        self.spoken_of: Float[np.ndarray, "examples dim"] | None = None
        if (longest := max(self.lengths)) > options["window"]:
            raise DataError(
                f"A history, both prompts and a narrative take {longest} positions; the LM reads {options['window']}. "
                "Shorten data.max_history, or set data.max_narrative_tokens."
            )

    def about(self, items: Float[np.ndarray, "examples dim"]) -> "ConversationDataset":
        """A copy whose narratives are about other items, given by their vectors."""
        other = copy.copy(self)
        other.spoken_of = items
        return other

    def item(self, index: int) -> Float[np.ndarray, " dim"]:
        """Vector of the item that one example's narrative is about."""
        if self.spoken_of is not None:
            return np.asarray(self.spoken_of[index])
        return self.vectors(replace(self.examples[index], item_id=None), draw=self.draw)[-1]

    def mean(self, index: int) -> Float[np.ndarray, " dim"]:
        """Mean vector of one example's purchases and its item."""
        return np.asarray(np.vstack([self.history(index), self.item(index)]).mean(axis=0))

    def collate(self, indices: Sequence[int]) -> ConversationBatch:
        """Pads the examples of one step."""
        items = torch.from_numpy(np.stack([self.item(index) for index in indices]))
        narratives = [torch.from_numpy(self.narratives[index]) for index in indices]
        return ConversationBatch(
            **vars(super().collate(indices)),
            item=items,
            asked=self.asked.expand(len(indices), -1),
            **dict(zip(("target", "target_mask"), pad_rows(narratives, self.pad, left=False), strict=True)),
        )
