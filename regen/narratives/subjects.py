"""Subjects of raters: users with the texts to judge, the requests about them, and control texts."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from regen.data.prepare import load_tables
from regen.data.tables import DataError, Tables
from regen.narratives.critiques import pair_history, pair_limits
from regen.narratives.histories import UserHistory, fenced, user_histories
from regen.narratives.prompts import HistoryLimits, Request
from regen.narratives.rater_checks import CONTROLLED
from regen.narratives.raters import ATTRIBUTES, CRITIQUE, JUDGED_FEATURES, Rater, prompt_of
from regen.storage.artefacts import Artefact

FEWEST_CONTROLS, MOST_CONTROLS = 20, 100


@dataclass(frozen=True)
class Subject:
    """A user with the narratives to judge.

    Attributes:
        history: The user's purchases.
        narratives: Text of each feature.
        about: The item that the text of a feature is about, for features about one item.
        pair: The two items of the critique in `narratives`, if there is one.
    """

    history: UserHistory
    narratives: Mapping[str, str | None]
    about: Mapping[str, str] = field(default_factory=dict)
    pair: UserHistory | None = None

    def stages(self) -> Iterator[str]:
        """The stage of the history, and those whose features have a text."""
        for stage, features in JUDGED_FEATURES.items():
            if not features or (any(self.narratives.get(name) for name in features) and self.told(stage)):
                yield stage

    def told(self, stage: str) -> UserHistory | None:
        """What the stage's texts are about: the history up to an item, or the two items of a critique.

        None if the user did not buy the item, or has no critique.
        """
        if stage == CRITIQUE:
            return self.pair
        items = [self.about[feature] for feature in JUDGED_FEATURES[stage] if feature in self.about]
        return self.history.ending_with(items[0]) if items else self.history

    def request(self, stage: str, limits: HistoryLimits, draw: int) -> Request:
        """The request for one draw of one stage. It has no texts or scores of other stages."""
        texts = {feature: self.narratives.get(feature) for feature in JUDGED_FEATURES[stage]}
        values = {"narratives": fenced(texts)} if texts else {}
        history = self.told(stage)
        assert history is not None  # `stages` skips such a stage
        limits = pair_limits(limits) if stage == CRITIQUE else limits
        return prompt_of(stage).request(history, limits, draw=draw, **values)


def subjects(
    data: Artefact, *, max_history: int, users: int | None, narratives: pl.DataFrame | None = None
) -> list[Subject]:
    """Users with their narratives. If a user has several texts of a feature, the first one is used.

    The critique of a user is the one that leads to the latest purchase among those that have one.

    Args:
        data: Prepared or narrated data.
        max_history: Maximum number of purchases, the latest ones.
        users: Maximum number of users, drawn by a hash of their id; None for all.
        narratives: Texts to judge instead of those in `data` (`user_id`, `feature`, `item_id`, `text`); then no
            critiques are judged.

    Raises:
        DataError: If there are no narratives.
    """
    tables = load_tables(data.path)
    pairs: dict[str, UserHistory] = {}
    said: dict[str, str] = {}
    if narratives is None:
        narratives = tables.narratives
        pairs, said = _latest_critiques(tables)
    if narratives.is_empty():
        raise DataError(f"{data.path} has no narratives to rate. Choose what writes them: narrator=template or openai.")
    texts: dict[str, dict[str, str | None]] = {}
    about: dict[str, dict[str, str]] = {}
    for user, feature, item, text in narratives.select("user_id", "feature", "item_id", "text").iter_rows():
        if feature in texts.setdefault(user, {}):
            continue
        texts[user][feature] = text
        if item is not None:
            about.setdefault(user, {})[feature] = item
    narrated = replace(tables, interactions=tables.interactions.filter(pl.col("user_id").is_in(list(texts))))
    histories = user_histories(narrated, max_history=max_history, users=users)
    return [
        Subject(
            history,
            texts[user] | ({CRITIQUE: said[user]} if user in said else {}),
            about.get(user, {}),
            pairs.get(user),
        )
        for history in histories
        for user in [history.user_id]
    ]


def _latest_critiques(tables: Tables) -> tuple[dict[str, UserHistory], dict[str, str]]:
    """The two items and the text of the latest critique of each user."""
    if tables.critiques is None:
        return {}, {}
    items = {row["item_id"]: row for row in tables.items.iter_rows(named=True)}
    latest = tables.critiques.unique("user_id", keep="last", maintain_order=True)
    rows = latest.select("user_id", "from_item_id", "to_item_id", "text").rows()
    pairs = {user: pair_history(user, items[last], items[following]) for user, last, following, _ in rows}
    return pairs, {user: text for user, _, _, text in rows}


@dataclass(frozen=True)
class Control:
    """A narrative that a rater also judges with the history of another user.

    Attributes:
        subject: The user that the narrative is about.
        stage: The stage that judges it.
        other: The user whose history is shown instead.
    """

    subject: Subject
    stage: str
    other: Subject

    def requests(self, limits: HistoryLimits) -> tuple[Request, Request]:
        """The requests with the genuine history, which is also the first draw, and with the other user's."""
        history = replace(self.other.told(self.stage) or self.other.history, user_id=self.subject.history.user_id)
        shuffled = Subject(history, self.subject.narratives, pair=history)
        control = shuffled.request(self.stage, limits, draw=0)
        genuine = self.subject.request(self.stage, limits, draw=0)
        return genuine, replace(control, prompt=f"{control.prompt} control")


def controls_of(people: Sequence[Subject], share: float) -> list[Control]:
    """Draws control narratives, at most one per user. The user and the stage follow from a hash of the user id.

    The other history has no item of the genuine one, if there is such a history. A critique is shown with the two items
    of another user's critique, if there is one. Nearly all controls stay the same
    when users are added, so their answers are in the ledger already.

    Args:
        people: All users whose narratives are rated.
        share: Share of users with a control, but at least 20 users and at most 100; 0 for none.
    """
    if share == 0 or len(people) < 2:
        return []
    drawn = sorted(people, key=lambda subject: _digest(subject.history.user_id))
    count = min(max(math.ceil(share * len(drawn)), FEWEST_CONTROLS), MOST_CONTROLS)
    controls: list[Control] = []
    for at, subject in enumerate(drawn):
        stages = [stage for stage in subject.stages() if CONTROLLED in ATTRIBUTES[stage]]
        if stages and len(controls) < count:
            others, items = [*drawn[at + 1 :], *drawn[:at]], _items(subject)
            stage = stages[_digest(subject.history.user_id)[-1] % len(stages)]
            if stage == CRITIQUE:
                others = [other for other in others if other.pair] or others
            other = next((other for other in others if items.isdisjoint(_items(other))), others[0])
            controls.append(Control(subject, stage, other))
    return controls


def _digest(user: str) -> bytes:
    return hashlib.sha256(user.encode()).digest()


def _items(subject: Subject) -> set[str]:
    return {purchase.item_id for purchase in subject.history.purchases}


def requests_of(rater: Rater, people: Sequence[Subject], draws: int, controls: Sequence[Control]) -> Iterator[Request]:
    """Yields the requests for all draws of all stages of all users, then those of the controls."""
    for subject in people:
        for stage in subject.stages():
            for draw in range(draws):
                yield subject.request(stage, rater.request_limits, draw)
    for control in controls:
        yield control.requests(rater.request_limits)[1]
