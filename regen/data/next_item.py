"""Examples of `task=recommend` (paper 4.1): a user's purchases, oldest first, and the next item after each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from regen.config.schema import Split
from regen.data.batch import Rows, pad_rows
from regen.data.critiques import Critiques
from regen.data.datamodule import EVALUATION_DRAW, token_ids
from regen.data.histories import Example
from regen.data.prepare import item_rows
from regen.data.splits import NAMES, split_of
from regen.data.tables import NEXT_ITEM, DataError, Tables

Vectors = Callable[..., Float[np.ndarray, "history dim"]]
FULL_CATALOGUE = 200_000  # items; the loss of a training step is exact up to here, and sampled above
NEGATIVES = 8192  # items drawn for each step with a sampled loss


def purchase_sequences(
    tables: Tables, split: Split, *, max_history: int, exclude_bought: bool
) -> dict[str, list[Example]]:
    """The purchases of each user, by split. The last purchase is the one to predict.

    Items without a title are dropped (paper 3.2). Then the last purchase and up to `max_history` purchases before it
    are kept. Users with fewer than two purchases have no example.

    Args:
        tables: Prepared tables. `rows` of an example are row numbers of their interactions.
        split: A split by users or by file.
        max_history: Maximum length of a history.
        exclude_bought: Whether only the first purchase of an item counts.

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
    """Histories, padded on the right.

    Attributes:
        examples: Index of each row's example in its split.
        fused: Vectors of the purchases, oldest first.
        history_mask: True where `fused` holds a purchase.
        items: Catalogue row of each purchase's item; 0 on padding.
        queries: Prediction of the closed form after each purchase, in the space of `fused`.
        targets: Catalogue row of the next item; -1 where there is no target.
        prompt: Token ids before the history, the same in all rows.
        words: Token ids of the critique after each purchase.
        words_mask: True where `words` holds a token.
        negatives: Catalogue rows of the items that a sampled loss compares with; None for the whole catalogue.
        log_counts: Log of how often each of them is expected among the drawn (the logQ correction).
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
    negatives: Int[Tensor, " negatives"] | None = field(default=None, kw_only=True)
    log_counts: Float[Tensor, " negatives"] | None = field(default=None, kw_only=True)


class NextItemDataset(Dataset[int]):
    """Examples of one split.

    Args:
        examples: From `purchase_sequences`.
        vectors: Returns the vectors of an example's purchases.
        item_of: Catalogue row of each interaction's item.
        queries: Prediction of the closed form after each purchase. Called with the vectors of the purchases, those of
            the critiques (or None), and `fold`.
        tokenizer: Tokenizer of the LM.
        prompt: Text before the history.
        window: Context length of the LM.
        every: Whether the next item is a target after each purchase, or only after the last one.
        critiques: Critiques of the users.
        item_ids: Item id of each catalogue row; needed for critiques.
        fold: Cross-fitting fold of each training example; None outside of training.
        drawn: Probability with which each item is drawn as a negative; None for an exact loss.

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
        drawn: Float[np.ndarray, " items"] | None = None,
    ) -> None:
        self.examples, self.vectors, self.item_of, self.queries = list(examples), vectors, item_of, queries
        self.prompt = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        self.every, self.fold, self.draw = every, fold, EVALUATION_DRAW
        self.critiques = critiques
        self.drawn, self.upto = drawn, None if drawn is None else np.cumsum(drawn)
        self.said = [
            [-1] * (len(one.rows) - 1)
            if critiques is None
            else critiques.rows(one.user_id, [item_ids[row] for row in item_of[one.rows[1:]]])
            for one in self.examples
        ]
        texts = [*(critiques.texts if critiques is not None else ()), ""]  # the last one means no critique
        self.tokens = [torch.from_numpy(ids) for ids in token_ids(tokenizer, texts)]
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
        """Vectors of one example's purchases without the last one."""
        return history_vectors(self.examples[index], self.vectors, draw=self.draw)

    def items(self, index: int) -> Int[np.ndarray, " purchases"]:
        """Catalogue rows of one example's purchases, including the last one."""
        return np.asarray(self.item_of[self.examples[index].rows])

    def collate(self, indices: Sequence[int]) -> NextItemBatch:
        """Pads the examples of one step."""
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
            **self._negatives(indices),
        )

    def _negatives(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Items drawn for a sampled loss. The same step draws the same items, also after a resume."""
        if self.drawn is None or self.upto is None:
            return {}
        places = np.random.default_rng(list(indices)).random(NEGATIVES) * self.upto[-1]
        rows = np.searchsorted(self.upto, places, side="right").clip(max=len(self.drawn) - 1)
        counts = torch.from_numpy(np.log(NEGATIVES * self.drawn[rows]).astype(np.float32))
        return {"negatives": torch.from_numpy(rows), "log_counts": counts}

    def _words(self, indices: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Token ids of the critique after each purchase, and their mask."""
        said = [[*self.said[index], *[-1] * (length - len(self.said[index]))] for index in indices]
        words, mask = pad_rows([self.tokens[row] for rows in said for row in rows], self.pad, left=False)
        return words.view(len(indices), length, -1), mask.view(len(indices), length, -1)

    def query(self, index: int, history: Float[np.ndarray, "history dim"]) -> Float[np.ndarray, "history dim"]:
        """Prediction of the closed form after each purchase of one example."""
        said = None if self.critiques is None else self.critiques.vectors[self.said[index]]
        return self.queries(history, said, fold=None if self.fold is None else self.fold[index])


def drawn_by_popularity(bought: Int[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """Probability of each item to be a negative: in proportion to its purchases by training users, plus one."""
    return np.asarray((bought + 1) / (bought + 1).sum())


def history_vectors(example: Example, vectors: Vectors, *, draw: int) -> Float[np.ndarray, "history dim"]:
    """Vectors of an example's purchases without the last one."""
    return vectors(replace(example, item_id=None, rows=example.rows[:-1], withheld=example.withheld[:-1]), draw=draw)


def catalogue_rows(tables: Tables) -> np.ndarray:
    """Row in `items` of each interaction's item."""
    return item_rows(tables).to_numpy()
