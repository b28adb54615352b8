"""Fused histories as a torch or a Hugging Face dataset, for other models."""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from regen.data.datamodule import NarrativeDataset

if TYPE_CHECKING:
    import datasets


class FusedSequences(Dataset[dict[str, Any]]):
    """The input of the adapter and the reference, for each narrative.

    Elements have `user_id`, `feature`, `item_id` (None for a narrative about the user), `text` and `history`, a float32
    tensor `(interactions, K)`, oldest first. K is the total width of the encoder's parts.

    Args:
        split: A split of a `NarrativeDataModule`, `data.splits["train"]`.
    """

    def __init__(self, split: NarrativeDataset) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.split.examples[index]
        return {
            "user_id": example.user_id,
            "feature": example.feature,
            "item_id": example.item_id,
            "text": example.text,
            "history": torch.from_numpy(self.split.history(index)).float(),
        }

    def to_huggingface(self) -> "datasets.Dataset":
        """The same data as a `datasets.Dataset`; histories are lists of lists of float32."""
        import datasets

        features = datasets.Features(
            {name: datasets.Value("string") for name in ("user_id", "feature", "item_id", "text")}
            | {"history": datasets.List(datasets.List(datasets.Value("float32")))}
        )
        rows = (self[index] for index in range(len(self)))
        return datasets.Dataset.from_list(
            [{**row, "history": row["history"].tolist()} for row in rows], features=features
        )
