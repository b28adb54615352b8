"""SASRec of RecTools beside ours: `make baselines`, which runs this file in an environment of its own.

    PYTHONPATH=. .venv-baselines/bin/python benchmarks/sasrec.py [FOLDER]

FOLDER is an artefact `outputs/data/baselines-…` of a run of `task=recommend`; without it the newest one. SASRec is
trained on the training users' purchases, tuned on the mean reciprocal rank of the validation users (width, dropout,
number of epochs), and ranks items for the test users. The result is `outputs/baselines/ARTEFACT/sasrec.jsonl`, a file
for `evaluate.py runs=… recommendations=FILE`. A file that is newer than its data is kept.
"""

import json
import sys
import warnings
from pathlib import Path

import pandas as pd
from rectools import Columns
from rectools.models import SASRecModel

from regen.embeddings.sasrec_script import dataset, sasrec

SETTINGS = [
    {"factors": 64, "dropout": 0.3},
    {"factors": 128, "dropout": 0.3},
    {"factors": 64, "dropout": 0.5},
]
EVERY, EPOCHS = 10, 60  # epochs between two looks at the validation users, and at most
PATIENCE = 2  # looks without a better one, after which a setting ends
RANKED = 100  # items of each list


def ranked(model: SASRecModel, users: pd.DataFrame) -> dict[str, list[str]]:
    """The best items for each user after all purchases but the last; bought ones are left out."""
    histories = dataset(users["user_id"], users["items"].map(lambda items: items[:-1]))
    found = model.recommend(users=users["user_id"].to_numpy(), dataset=histories, k=RANKED, filter_viewed=True)
    ordered = found.sort_values([Columns.User, Columns.Rank])
    return {user: rows.tolist() for user, rows in ordered.groupby(Columns.User)[Columns.Item]}


def reciprocal_rank(lists: dict[str, list[str]], users: pd.DataFrame) -> float:
    """Mean over users; an item that is not in the list counts zero."""
    places = [
        1 / (1 + items.index(row.items[-1])) if row.items[-1] in (items := lists.get(row.user_id, [])) else 0.0
        for row in users.itertuples()
    ]
    return sum(places) / len(places)


def tuned(parts: dict[str, pd.DataFrame]) -> tuple[str, dict[str, list[str]]]:
    """The setting that is best on the validation users, and its lists for the test users."""
    train = dataset(parts["train"]["user_id"], parts["train"]["items"])
    chosen, best, lists = "", -1.0, {}
    for number, settings in enumerate(SETTINGS, start=1):
        print(f"setting {number} of {len(SETTINGS)}: {settings}, at most {EPOCHS} epochs", flush=True)
        model, highest, worse = sasrec(**settings, seed=0), -1.0, 0
        for epochs in range(EVERY, EPOCHS + 1, EVERY):
            model.fit_partial(train, min_epochs=EVERY, max_epochs=EVERY)
            quality = reciprocal_rank(ranked(model, parts["validation"]), parts["validation"])
            print(f"{settings}, {epochs} epochs: mean reciprocal rank {quality:.4f} on validation users", flush=True)
            if quality > best:
                chosen, best, lists = f"{settings}, {epochs} epochs", quality, ranked(model, parts["test"])
            worse = 0 if quality > highest else worse + 1
            highest = max(highest, quality)
            if worse == PATIENCE:
                break
    return f"{chosen}: mean reciprocal rank {best:.4f}", lists


def main(folder: Path) -> None:
    given, out = folder / "sequences.parquet", Path("outputs/baselines", folder.name, "sasrec.jsonl")
    if out.is_file() and out.stat().st_mtime > given.stat().st_mtime:
        print(f"{out} is newer than its data, so nothing is trained. Remove it to train again.")
        return
    table = pd.read_parquet(given)
    table["items"] = table["items"].map(list)
    chosen, lists = tuned(dict(iter(table.groupby("split"))))
    lines = [json.dumps({"user_id": user, "items": items}) for user, items in lists.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"best on validation users: {chosen}\n{out}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    newest = sorted(Path("outputs/data").glob("baselines-*/sequences.parquet"), key=lambda path: path.stat().st_mtime)
    if not sys.argv[1:] and not newest:
        sys.exit("There is no outputs/data/baselines-…: run train.py task=recommend first, or name the folder.")
    main(Path(sys.argv[1]) if sys.argv[1:] else newest[-1].parent)
