"""Examples of `task=recommend` (paper 4.1): a user's purchases, oldest first, and the item that comes after each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from regen.data.batch import Rows, pad_rows
from regen.data.critiques import Critiques
from regen.data.datamodule import EVALUATION_DRAW
from regen.data.histories import Example
from regen.data.prepare import item_rows
from regen.data.splits import NAMES, split_of
from regen.data.tables import NEXT_ITEM, DataError, Tables

Vectors = Callable[..., Float[np.ndarray, "history dim"]]


def purchase_sequences(
    tables: Tables, split: Any, *, max_history: int, exclude_bought: bool
) -> dict[str, list[Example]]:
    """The purchases of each user up to the last one, which is what is to be found; by split.

    Items without a title are left out (paper 3.2), then all but the latest `max_history` and the last one. Users with
    fewer than two purchases have no example.

    Args:
        tables: Prepared tables; row numbers refer to their sorted interactions.
        split: Says whose purchases are trained on.
        max_history: The longest history.
        exclude_bought: Whether a repeated purchase counts once, the first time.

    Raises:
        DataError: If a split has no user with two purchases.
    """
    titled = tables.items.filter(pl.col("title").is_not_null()).select("item_id")
    rows = tables.interactions.select("user_id", "item_id").with_row_index("row")
    rows = rows.join(titled, on="item_id", how="semi", maintain_order="left")
    if exclude_bought:
        rows = rows.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    users = rows.group_by("user_id", maintain_order=True).agg("row", "item_id").filter(pl.col("row").list.len() > 1)
    users = users.with_columns(split=split_of(users["user_id"], split))
    found: dict[str, list[Example]] = {name: [] for name in NAMES}
    for user, numbers, items, part in users.iter_rows():
        if part is not None:
            history = np.asarray(numbers[-max_history - 1 :], dtype=np.int64)
            found[part].append(
                Example(user, NEXT_ITEM, items[-1], "", history, np.ones(len(history), dtype=bool), part)
            )
    for name, examples in found.items():
        if not examples:
            raise DataError(f"The {name} split has no user with two purchases of items that have a title.")
    return found


@dataclass
class NextItemBatch(Rows):
    """Histories padded to a common length at their ends.

    Attributes:
        examples: Index of each row in its split.
        fused: Vectors of the purchases, oldest first.
        history_mask: True where `fused` holds a purchase.
        items: Row of each purchase's item in the catalogue; 0 where there is none.
        queries: What the closed form looks for after each purchase, in the space of `fused`.
        targets: Row of the item that comes next; -1 where nothing is to be found.
        prompt: Token ids before the history, the same in all rows.
        words: Token ids of what the user said about each purchase, on the way to the next one.
        words_mask: True where `words` holds a token.
    """

    examples: Int[Tensor, " batch"]
    fused: Float[Tensor, "batch history in_dim"]
    history_mask: Bool[Tensor, "batch history"]
    items: Int[Tensor, "batch history"]
    queries: Float[Tensor, "batch history in_dim"]
    targets: Int[Tensor, "batch history"]
    prompt: Int[Tensor, "batch prompt"]
    words: Int[Tensor, "batch history words"]
    words_mask: Bool[Tensor, "batch history words"]


class NextItemDataset(Dataset[int]):
    """Users of one split.

    Args:
        examples: From `purchase_sequences`.
        vectors: Gives the vectors of purchases.
        item_of: Row in the catalogue of each interaction's item.
        queries: What the closed form looks for after each purchase: of their vectors, those of what was said (or None),
            and `fold`.
        tokenizer: The LM's.
        prompt: Before the history.
        window: The most positions the LM reads.
        every: Whether each purchase has the next one as its target; else the last one alone has.
        critiques: What users said, by `item_ids` of the catalogue.
        fold: Part of the training users that each example is in; None outside of training.

    Raises:
        DataError: If prompt and history do not fit into the LM's window.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vectors: Vectors,
        *,
        item_of: np.ndarray,
        queries: Callable[..., Float[np.ndarray, "history dim"]],
        tokenizer: Any,
        prompt: str,
        window: int,
        every: bool,
        critiques: Critiques | None = None,
        item_ids: Sequence[str] = (),
        fold: Sequence[int] | None = None,
    ) -> None:
        self.examples, self.vectors, self.item_of, self.queries = list(examples), vectors, item_of, queries
        self.prompt = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        self.every, self.fold, self.draw = every, fold, EVALUATION_DRAW
        self.critiques = critiques
        self.said = [
            [-1] * (len(one.rows) - 1)
            if critiques is None
            else critiques.rows(one.user_id, [item_ids[row] for row in item_of[one.rows[1:]]])
            for one in self.examples
        ]
        texts = [*(critiques.texts if critiques is not None else ()), ""]  # the last one stands for nothing said
        self.tokens = [
            torch.tensor(ids, dtype=torch.int64) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        self.pad = int(tokenizer.pad_token_id)
        self.lengths = [1 + len(self.prompt) + sum(1 + len(self.tokens[row]) for row in rows) for rows in self.said]
        if (longest := max(self.lengths, default=0)) > window:
            raise DataError(
                f"A history and the prompt take {longest} positions; the LM reads {window}. Shorten data.max_history "
                f"or feature.{NEXT_ITEM}.prompt."
            )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> int:
        return index

    def history(self, index: int) -> Float[np.ndarray, "history dim"]:
        """Vectors of one user's purchases without the last one."""
        return history_vectors(self.examples[index], self.vectors, draw=self.draw)

    def items(self, index: int) -> Int[np.ndarray, " purchases"]:
        """Catalogue rows of one user's purchases, the last one with them."""
        return np.asarray(self.item_of[self.examples[index].rows])

    def collate(self, indices: Sequence[int]) -> NextItemBatch:
        """Pads the users of one step."""
        fused = [self.history(index) for index in indices]
        queries = [self.query(index, one) for index, one in zip(indices, fused, strict=True)]
        items = [torch.from_numpy(self.items(index)) for index in indices]
        targets = [one[1:].clone() for one in items]
        if not self.every:
            for one in targets:
                one[:-1] = -1
        padded, mask = pad_rows([torch.from_numpy(one) for one in fused], 0, left=False)
        return NextItemBatch(
            torch.tensor(indices),
            padded,
            mask,
            pad_rows([one[:-1] for one in items], 0, left=False)[0],
            pad_rows([torch.from_numpy(one) for one in queries], 0, left=False)[0],
            pad_rows(targets, -1, left=False)[0],
            self.prompt.expand(len(indices), -1),
            *self._words(indices, padded.shape[1]),
        )

    def _words(self, indices: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Token ids of what was said after each purchase, and their mask."""
        said = [[*self.said[index], *[-1] * (length - len(self.said[index]))] for index in indices]
        words, mask = pad_rows([self.tokens[row] for rows in said for row in rows], self.pad, left=False)
        return words.view(len(indices), length, -1), mask.view(len(indices), length, -1)

    def query(self, index: int, history: Float[np.ndarray, "history dim"]) -> Float[np.ndarray, "history dim"]:
        """What the closed form looks for after each purchase of one user."""
        said = None if self.critiques is None else self.critiques.vectors[self.said[index]]
        return self.queries(history, said, fold=None if self.fold is None else self.fold[index])


def history_vectors(example: Example, vectors: Vectors, *, draw: int) -> Float[np.ndarray, "history dim"]:
    """Vectors of an example's purchases without the last one."""
    return vectors(replace(example, item_id=None, rows=example.rows[:-1], withheld=example.withheld[:-1]), draw=draw)


def catalogue_rows(tables: Tables) -> np.ndarray:
    """Row in `items` of each interaction's item."""
    return item_rows(tables).to_numpy()
