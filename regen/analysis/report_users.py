"""The part of the report about single test users: their purchases, references and the narratives of each model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import polars as pl

from regen.analysis.report_runs import ReportedRun, withheld
from regen.data.prepare import load_tables
from regen.evaluation.comparison import ENCODERS
from regen.evaluation.controls import shuffled
from regen.narratives.histories import Purchase, UserHistory, user_histories
from regen.pipeline import HISTORY
from regen.storage.artefacts import Artefact

SHORT = 160  # longer reviews (in characters) are folded
LATEST = 5  # earlier purchases are folded
_KEYS = ("user_id", "item_id", "reference")


@dataclass(frozen=True)
class System:
    """One column: a model or its shuffled floor.

    Attributes:
        name: Encoder, and its seed if there are several.
        kind: `model` or `floor`.
        texts: Narratives by user, item and reference.
    """

    name: str
    kind: str
    texts: Mapping[tuple[str, str | None, str], str]


@dataclass(frozen=True)
class Group:
    """The systems that wrote the same feature under the same settings.

    Attributes:
        feature: The output feature.
        settings: The settings as one text, empty if none varies.
        withheld: Whether the review of the item of a narrative was withheld from the models.
        systems: The columns.
    """

    feature: str
    settings: str
    withheld: bool
    systems: Sequence[System]


@dataclass(frozen=True)
class ShownPurchase:
    """A purchase as the page shows it."""

    title: str
    day: str | None
    rating: str | None
    review: str
    short: str | None  # None if the review is not folded


@dataclass(frozen=True)
class Narrative:
    """A reference, and the text of each system in each group, or None without a text."""

    feature: str
    item: str | None
    reference: str
    withheld: bool
    rows: Sequence[tuple[str, Sequence[tuple[System, str | None]]]]


@dataclass(frozen=True)
class Person:
    """A test user; without purchases if the data are missing."""

    user_id: str
    earlier: Sequence[ShownPurchase]
    latest: Sequence[ShownPurchase]
    narratives: Sequence[Narrative]


@dataclass(frozen=True)
class Panel:
    """The shown users of one data set.

    Attributes:
        data: Name of the data set.
        people: The drawn users.
        available: Number of users that they were drawn from.
        history: The maximum length of a history.
        problems: Sentences about what is not shown.
    """

    data: str
    people: Sequence[Person]
    available: int
    history: int
    problems: Sequence[str]


RunGroups = Mapping[tuple[str, str], Sequence[ReportedRun]]
"""Runs by feature and by the settings in which they differ, as one text; they may differ in encoder and seed too."""


def side_by_side(groups: RunGroups, *, users: int, seed: int) -> list[Panel]:
    """One panel per data set, with the same test users for all groups of runs on these data.

    Users with a text from every system come first, then a hash of seed and user id decides. So a larger number of users
    includes the users of a smaller one.

    Args:
        groups: The runs, grouped as in the table.
        users: Number of users per data set.
        seed: Seed of the draw.
    """
    by_data: dict[str, dict[tuple[str, str], list[ReportedRun]]] = {}
    for key, runs in groups.items():
        for run in runs:
            if run.predictions is not None:
                by_data.setdefault(_data_name(run), {}).setdefault(key, []).append(run)
    return [_panel(data, members, users, seed) for data, members in by_data.items()]


def _panel(data: str, members: RunGroups, users: int, seed: int) -> Panel:
    problems: list[str] = []
    groups = [_group(feature, settings, of, problems) for (feature, settings), of in members.items()]
    runs = [run for of in members.values() for run in of]
    chosen, available = _chosen(groups, users, seed)
    if available < users:
        problems.append(f"{users} users were asked for; there are {available} with predictions.")
    history = max(int(run.config.get("data", {}).get("max_history", HISTORY)) for run in runs)
    artefact = runs[0].data
    if artefact is None:
        problems.append(f"Histories are not shown: {runs[0].inputs}")
    histories, titles = ({}, {}) if artefact is None else _histories(artefact, chosen, history)
    people = []
    for user in chosen:
        bought = [_shown(purchase) for purchase in histories[user].purchases] if user in histories else []
        people.append(Person(user, bought[:-LATEST], bought[-LATEST:], _narratives(user, groups, titles)))
    return Panel(data, people, available, history, problems)


def _group(feature: str, settings: str, runs: Sequence[ReportedRun], problems: list[str]) -> Group:
    """One system per encoder, from its lowest seed, and the floor of `both` or else of the first encoder."""
    known = list(dict.fromkeys([*ENCODERS, *(run.encoder for run in runs)]))
    first: dict[str, ReportedRun] = {}
    for run in sorted(runs, key=lambda run: (known.index(run.encoder), run.cell.seed)):
        first.setdefault(run.encoder, run)
    several = len({run.cell.seed for run in runs}) > 1
    systems = [
        System(f"{name}, seed {run.cell.seed}" if several else name, "model", _texts(_of_feature(run, feature)))
        for name, run in first.items()
    ]
    source = "both" if "both" in first else next(iter(first))
    written = _of_feature(first[source], feature)
    if written["user_id"].n_unique() > 1:
        floor = shuffled(written, seed=int(first[source].config.get("evaluation", {}).get("seed", 0)))
        systems.append(System(f"shuffled: {source} for another user", "floor", _texts(floor)))
    else:
        problems.append(f"{feature}: there is no shuffled floor, which needs predictions for at least two users.")
    return Group(feature, settings, withheld(first[source], feature), systems)


def _of_feature(run: ReportedRun, feature: str) -> pl.DataFrame:
    assert run.predictions is not None
    return run.predictions.filter(feature=feature)


def _texts(predictions: pl.DataFrame) -> dict[tuple[str, str | None, str], str]:
    rows = predictions.select(*_KEYS, "prediction").iter_rows()
    return {(user, item, reference): text for user, item, reference, text in rows}


def _chosen(groups: Sequence[Group], users: int, seed: int) -> tuple[list[str], int]:
    """The drawn users, and the number of users to draw from."""
    written = [{key[0] for key in system.texts} for group in groups for system in group.systems]
    everyone = set().union(*written)

    def order(user: str) -> tuple[int, bytes]:
        without = sum(user not in of for of in written)
        return without, hashlib.sha256(f"{seed}:{user}".encode()).digest()

    return sorted(everyone, key=order)[:users], len(everyone)


def _histories(
    artefact: Artefact, users: Sequence[str], most: int
) -> tuple[dict[str, UserHistory], dict[str, str | None]]:
    """Histories by user, and titles by item."""
    tables = load_tables(artefact.path)
    of_them = replace(tables, interactions=tables.interactions.filter(pl.col("user_id").is_in(list(users))))
    histories = {history.user_id: history for history in user_histories(of_them, max_history=most)}
    return histories, dict(tables.items.select("item_id", "title").iter_rows())


def _narratives(user: str, groups: Sequence[Group], titles: Mapping[str, str | None]) -> list[Narrative]:
    """Every reference of a user once, with a row per group."""
    rows: dict[tuple[str, str | None, str], list[Group]] = {}
    for group in groups:
        keys = dict.fromkeys(key for system in group.systems for key in system.texts if key[0] == user)
        for _, item, reference in keys:
            rows.setdefault((group.feature, item, reference), []).append(group)
    return [
        Narrative(
            feature,
            None if item is None else titles.get(item) or item,
            reference,
            any(group.withheld for group in of),
            [
                (group.settings, [(system, system.texts.get((user, item, reference))) for system in group.systems])
                for group in of
            ],
        )
        for (feature, item, reference), of in rows.items()
    ]


def _shown(purchase: Purchase) -> ShownPurchase:
    day = None if purchase.timestamp is None else datetime.fromtimestamp(purchase.timestamp, UTC).date().isoformat()
    rating = None if purchase.rating is None else f"{purchase.rating:g}"
    review = "\n".join(part for part in (purchase.review_title, purchase.review_text) if part and part.strip())
    short = None if len(review) <= SHORT else " ".join(review[:SHORT].split()) + " …"
    return ShownPurchase(purchase.title, day, rating, review, short)


def _data_name(run: ReportedRun) -> str:
    if run.data is not None:
        return run.data.path.name
    return f"prepared {run.record.get('inputs', {}).get('prepared', 'unknown')}"
