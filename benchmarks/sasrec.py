"""SASRec of RecTools beside ours, in an environment of its own: `make baselines`, which runs this file there.

    .venv-baselines/bin/python benchmarks/sasrec.py [FOLDER] [OUT]

FOLDER is an artefact `outputs/data/baselines-…` of a run of `task=recommend`; without it the newest one. SASRec is
trained on the training users' purchases, tuned on the mean reciprocal rank of the validation users (width, dropout,
number of epochs), and ranks items for the test users. OUT, `outputs/baselines/sasrec.jsonl` by default, is a file for
`evaluate.py runs=… recommendations=OUT`.
"""

import json
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytorch_lightning
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

SETTINGS = [
    {"n_factors": 64, "dropout_rate": 0.3},
    {"n_factors": 128, "dropout_rate": 0.3},
    {"n_factors": 64, "dropout_rate": 0.5},
]
EVERY, EPOCHS = 10, 60  # epochs between two looks at the validation users, and at most
LONGEST = 50  # of a history
RANKED = 100  # items of each list


def interactions(sequences: pd.DataFrame, *, without_last: bool) -> pd.DataFrame:
    """One row a purchase; what is to be found is the last one of each user."""
    rows = [
        (row.user_id, item, at)
        for row in sequences.itertuples()
        for at, item in enumerate(row.items[:-1] if without_last else row.items)
    ]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, "at"])
    frame[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(frame.pop("at"), unit="D")
    return frame.assign(**{Columns.Weight: 1.0})


def ranked(model: SASRecModel, sequences: pd.DataFrame) -> dict[str, list[str]]:
    """The best items for each user, bought ones left out."""
    histories = Dataset.construct(interactions(sequences, without_last=True))
    found = model.recommend(users=sequences["user_id"].to_numpy(), dataset=histories, k=RANKED, filter_viewed=True)
    ordered = found.sort_values([Columns.User, Columns.Rank])
    return {user: rows.tolist() for user, rows in ordered.groupby(Columns.User)[Columns.Item]}


def reciprocal_rank(lists: dict[str, list[str]], sequences: pd.DataFrame) -> float:
    """Mean over users; an item that is not in the list counts zero."""
    places = [
        1 / (1 + items.index(row.items[-1])) if row.items[-1] in (items := lists.get(row.user_id, [])) else 0.0
        for row in sequences.itertuples()
    ]
    return sum(places) / len(places)


def main(folder: Path, out: Path) -> None:
    table = pd.read_parquet(folder / "sequences.parquet")
    table["items"] = table["items"].map(list)
    parts = {name: table[table["split"] == name] for name in ("train", "validation", "test")}
    train = Dataset.construct(interactions(parts["train"], without_last=False))
    best: tuple[float, dict[str, list[str]], str] = (-1.0, {}, "")
    for settings in SETTINGS:
        pytorch_lightning.seed_everything(0, verbose=False)
        model = SASRecModel(n_blocks=2, n_heads=2, session_max_len=LONGEST, **settings)
        for epochs in range(EVERY, EPOCHS + 1, EVERY):
            model.fit_partial(train, min_epochs=EVERY, max_epochs=EVERY)
            quality = reciprocal_rank(ranked(model, parts["validation"]), parts["validation"])
            print(f"{settings} {epochs} epochs: {quality:.4f}", flush=True)
            if quality > best[0]:
                best = (quality, ranked(model, parts["test"]), f"{settings} {epochs} epochs")
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"user_id": user, "items": items}) for user, items in best[1].items()]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"best on validation: {best[2]}\n{out}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    given = [Path(argument) for argument in sys.argv[1:]]
    newest = sorted(Path("outputs/data").glob("baselines-*/sequences.parquet"), key=lambda path: path.stat().st_mtime)
    if not given and not newest:
        sys.exit("There is no outputs/data/baselines-…: run train.py task=recommend first, or name the folder.")
    main(
        given[0] if given else newest[-1].parent, given[1] if len(given) > 1 else Path("outputs/baselines/sasrec.jsonl")
    )
