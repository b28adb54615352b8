"""Test users side by side: what they bought, what is true, and what each model wrote."""

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

SHORT = 160  # characters of a review before it has to be unfolded
LATEST = 5  # purchases before the others have to be unfolded
_KEYS = ("user_id", "item_id", "reference")


@dataclass(frozen=True)
class System:
    """One column: a model, or the floor that belongs to it.

    Attributes:
        name: Encoder, and its seed where there are several.
        kind: `model` or `floor`.
        texts: What it wrote, by user, item and reference.
    """

    name: str
    kind: str
    texts: Mapping[tuple[str, str | None, str], str]


@dataclass(frozen=True)
class RunGroup:
    """Runs that share feature and settings; they differ in encoder and seed.

    Attributes:
        feature: What they are shown for.
        settings: As one text, empty where no setting varies.
        runs: The runs.
    """

    feature: str
    settings: str
    runs: Sequence[ReportedRun]


@dataclass(frozen=True)
class Group:
    """The systems that wrote the same feature under the same settings.

    Attributes:
        feature: Which one.
        settings: As one text, empty where no setting varies.
        withheld: Whether they could not see the review of the item that a narrative speaks of.
        systems: Columns.
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
    short: str | None  # None where the whole review is short enough


@dataclass(frozen=True)
class Narrative:
    """A reference, and what each system of each group wrote in its place; None where it wrote nothing."""

    feature: str
    item: str | None
    reference: str
    withheld: bool
    rows: Sequence[tuple[str, Sequence[tuple[System, str | None]]]]


@dataclass(frozen=True)
class Person:
    """A test user; without purchases where the data are not there."""

    user_id: str
    earlier: Sequence[ShownPurchase]
    latest: Sequence[ShownPurchase]
    narratives: Sequence[Narrative]


@dataclass(frozen=True)
class Panel:
    """The users of one data set.

    Attributes:
        data: Its name.
        people: Drawn users.
        available: How many they were drawn from.
        history: The most purchases that a history holds.
        problems: What is not shown, and why.
    """

    data: str
    people: Sequence[Person]
    available: int
    history: int
    problems: Sequence[str]


def side_by_side(groups: Sequence[RunGroup], *, users: int, seed: int) -> list[Panel]:
    """The same test users of every data set, each with all groups of runs over these data.

    Users for whom every system wrote something come first; among them a hash of seed and user id decides, so that more
    users mean the same ones and others.

    Args:
        groups: Runs in the groups of the table.
        users: How many of each data set.
        seed: Of the draw.
    """
    by_data: dict[str, list[RunGroup]] = {}
    for group in groups:
        written = [run for run in group.runs if run.predictions is not None]
        for name in dict.fromkeys(map(_data_name, written)):
            of_it = replace(group, runs=[run for run in written if _data_name(run) == name])
            by_data.setdefault(name, []).append(of_it)
    return [_panel(data, members, users, seed) for data, members in by_data.items()]


def _panel(data: str, members: Sequence[RunGroup], users: int, seed: int) -> Panel:
    problems: list[str] = []
    groups = [_group(group, problems) for group in members]
    runs = [run for group in members for run in group.runs]
    chosen, available = _chosen(groups, users, seed)
    if available < users:
        problems.append(f"{users} users were asked for; there are {available} with predictions.")
    history = max(int(run.config.get("data", {}).get("max_history", HISTORY)) for run in runs)
    artefact = runs[0].data
    if artefact is None:
        problems.append(f"Histories are not shown: {runs[0].inputs}")
    histories = {} if artefact is None else _histories(artefact, chosen, history)
    titles = {} if artefact is None else _titles(artefact)
    people = []
    for user in chosen:
        bought = [_shown(purchase) for purchase in histories[user].purchases] if user in histories else []
        people.append(Person(user, bought[:-LATEST], bought[-LATEST:], _narratives(user, groups, titles)))
    return Panel(data, people, available, history, problems)


def _group(group: RunGroup, problems: list[str]) -> Group:
    """One system an encoder, of its lowest seed, and the floor of `both`, else of the first."""
    known = list(dict.fromkeys([*ENCODERS, *(run.encoder for run in group.runs)]))
    first: dict[str, ReportedRun] = {}
    for run in sorted(group.runs, key=lambda run: (known.index(run.encoder), run.cell.seed)):
        first.setdefault(run.encoder, run)
    several = len({run.cell.seed for run in group.runs}) > 1
    systems = [
        System(f"{name}, seed {run.cell.seed}" if several else name, "model", _texts(_of_feature(run, group.feature)))
        for name, run in first.items()
    ]
    source = "both" if "both" in first else next(iter(first))
    written = _of_feature(first[source], group.feature)
    if written["user_id"].n_unique() > 1:
        floor = shuffled(written, seed=int(first[source].config.get("evaluation", {}).get("seed", 0)))
        systems.append(System(f"shuffled: {source} for another user", "floor", _texts(floor)))
    else:
        problems.append(f"{group.feature}: nothing is shuffled, which needs predictions for at least two users.")
    return Group(group.feature, group.settings, withheld(first[source], group.feature), systems)


def _of_feature(run: ReportedRun, feature: str) -> pl.DataFrame:
    assert run.predictions is not None
    return run.predictions.filter(feature=feature)


def _texts(predictions: pl.DataFrame) -> dict[tuple[str, str | None, str], str]:
    rows = predictions.select(*_KEYS, "prediction").iter_rows()
    return {(user, item, reference): text for user, item, reference, text in rows}


def _chosen(groups: Sequence[Group], users: int, seed: int) -> tuple[list[str], int]:
    """The drawn users, and how many there are."""
    written = [{key[0] for key in system.texts} for group in groups for system in group.systems]
    everyone = set().union(*written)

    def order(user: str) -> tuple[int, bytes]:
        without = sum(user not in of for of in written)
        return without, hashlib.sha256(f"{seed}:{user}".encode()).digest()

    return sorted(everyone, key=order)[:users], len(everyone)


def _histories(artefact: Artefact, users: Sequence[str], most: int) -> dict[str, UserHistory]:
    tables = load_tables(artefact.path)
    of_them = replace(tables, interactions=tables.interactions.filter(pl.col("user_id").is_in(list(users))))
    return {history.user_id: history for history in user_histories(of_them, max_history=most)}


def _titles(artefact: Artefact) -> dict[str, str | None]:
    return dict(load_tables(artefact.path).items.select("item_id", "title").iter_rows())


def _narratives(user: str, groups: Sequence[Group], titles: Mapping[str, str | None]) -> list[Narrative]:
    """Every reference of a user once, with a row a group."""
    rows: dict[tuple[str, str | None, str], list[Group]] = {}
    for group in groups:
        for _, item, reference in dict.fromkeys(
            key for system in group.systems for key in system.texts if key[0] == user
        ):
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
