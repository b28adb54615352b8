"""Trains SASRec with RecTools. It runs in `.venv-baselines`, so it imports nothing else of `regen`.

    .venv-baselines/bin/python -I regen/embeddings/sasrec_script.py SEQUENCES VECTORS SETTINGS

SEQUENCES is a Parquet file with `user_id` and `items`, oldest first. The script writes VECTORS, a Parquet file with
`item` and `vector`. SETTINGS is a JSON object with the arguments of `sasrec`. `benchmarks/sasrec.py` uses the same
functions to rank items.
"""

import json
import logging
import sys
import warnings
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import LambdaCallback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule

LONGEST = 50  # purchases of a history that the transformer reads


def dataset(users: pd.Series, sequences: pd.Series) -> Dataset:
    """A dataset of RecTools with one row per purchase; each purchase is a second later than the one before.

    Args:
        users: User ids.
        sequences: The items of each user, oldest first.
    """
    frame = pd.DataFrame({Columns.User: users, Columns.Item: sequences})
    frame = frame[frame[Columns.Item].str.len() > 0].explode(Columns.Item, ignore_index=True)
    order = pd.to_timedelta(frame.groupby(Columns.User).cumcount(), unit="s")
    frame[Columns.Datetime] = pd.Timestamp("2000-01-01") + order
    return Dataset.construct(frame.assign(**{Columns.Weight: 1.0}))


class TargetsOnly(TransformerLightningModule):  # type: ignore[misc]
    """Scores the catalogue only where a target is: the same loss as RecTools', which scores the padding, too.

    Most histories are far shorter than `LONGEST`, so on a CPU an epoch takes a third of the time.
    """

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        asked = batch["y"] != 0
        items = self.torch_model.item_model.get_all_embeddings()
        queries = self.torch_model.encode_sessions(batch, items)[asked]
        loss = torch.nn.functional.cross_entropy(self.torch_model.similarity_module(queries, items), batch["y"][asked])
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True)
        return loss


def sasrec(*, factors: int, dropout: float, seed: int, epochs: int = 1) -> SASRecModel:
    """An untrained SASRec of two blocks with two heads; it prints a line after each epoch."""
    seed_everything(seed, verbose=False)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no lines about devices

    def trainer() -> Trainer:
        return Trainer(
            min_epochs=epochs,
            max_epochs=epochs,
            devices=1,
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[LambdaCallback(on_train_epoch_end=_report)],
        )

    return SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=factors,
        dropout_rate=dropout,
        session_max_len=LONGEST,
        lightning_module_type=TargetsOnly,
        get_trainer_func=trainer,
    )


def item_vectors(model: SASRecModel) -> pd.DataFrame:
    """`item` and `vector` of each item that a trained SASRec has met."""
    model.torch_model.eval()  # without dropout
    vectors = model.torch_model.item_model.get_all_embeddings().detach().cpu().numpy()
    extra = model.data_preparator.n_item_extra_tokens  # padding
    items = model.data_preparator.item_id_map.external_ids
    return pd.DataFrame({"item": items[extra:].astype("int64"), "vector": list(vectors[extra:])})


def _report(trainer: Trainer, module: Any) -> None:
    loss = float(trainer.callback_metrics[module.train_loss_name])
    print(f"SASRec: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, loss {loss:.3f}", flush=True)


def main(sequences: str, vectors: str, settings: str) -> None:
    table = pd.read_parquet(sequences)
    model = sasrec(**json.loads(settings))
    model.fit(dataset(table["user_id"], table["items"]))
    item_vectors(model).to_parquet(vectors)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # of libraries, about workers and pandas
    main(*sys.argv[1:])
