"""Stage `rate`: language models judge the narratives of every user (paper 3.3, appendices B and G)."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from regen.data.prepare import load_tables
from regen.data.tables import DataError
from regen.narratives.agreement import agreement, final_score, stage_confidence
from regen.narratives.histories import UserHistory, fenced, user_histories
from regen.narratives.ledger import Ledger
from regen.narratives.prompts import HistoryLimits, Request
from regen.narratives.rater_checks import CONTROLLED, CONTROLS
from regen.narratives.raters import ATTRIBUTES, JUDGED_FEATURES, LEVELS, Rater, answer_model, ask_raters, prompt_of
from regen.narratives.report import write_failures
from regen.runtime.shards import HERE, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build
from regen.storage.fingerprints import fingerprint

RATINGS = pl.Schema(
    {
        "user_id": pl.String(),
        "stage": pl.String(),
        "features": pl.List(pl.String()),
        "attribute": pl.String(),
        "score": pl.Int8(),
        "draws": pl.List(pl.Int8()),
        "confidence": pl.Float64(),
        "confidence_draws": pl.List(pl.Int8()),
        "rater": pl.String(),
        "model": pl.String(),
        "prompt": pl.String(),
    }
)
"""A judgement: final score 1 to 7, its draws, the confidence of the stage, rater, model and prompt."""
FEWEST_CONTROLS, MOST_CONTROLS = 20, 100


@dataclass(frozen=True)
class Subject:
    """A user with the narratives to judge.

    Attributes:
        history: The user's purchases.
        narratives: Text of each feature.
        about: The item that the text of a feature is about, for features about one item.
    """

    history: UserHistory
    narratives: Mapping[str, str | None]
    about: Mapping[str, str] = field(default_factory=dict)

    def stages(self) -> Iterator[str]:
        """The stage of the history, and those whose features have a text."""
        for stage, features in JUDGED_FEATURES.items():
            if not features or (any(self.narratives.get(name) for name in features) and self.told(stage)):
                yield stage

    def told(self, stage: str) -> UserHistory | None:
        """The history up to the item that the stage's texts are about; None if the user did not buy it."""
        items = [self.about[feature] for feature in JUDGED_FEATURES[stage] if feature in self.about]
        return self.history.ending_with(items[0]) if items else self.history

    def request(self, stage: str, limits: HistoryLimits, draw: int) -> Request:
        """The request for one draw of one stage. It has no texts or scores of other stages."""
        texts = {feature: self.narratives.get(feature) for feature in JUDGED_FEATURES[stage]}
        values = {"narratives": fenced(texts)} if texts else {}
        history = self.told(stage)
        assert history is not None  # `stages` skips such a stage
        return prompt_of(stage).request(history, limits, draw=draw, **values)


def subjects(
    data: Artefact, *, max_history: int, users: int | None, narratives: pl.DataFrame | None = None
) -> list[Subject]:
    """Users with their narratives. If a user has several texts of a feature, the first one is used.

    Args:
        data: Prepared or narrated data.
        max_history: Maximum number of purchases, the latest ones.
        users: Maximum number of users, drawn by a hash of their id; None for all.
        narratives: Texts to judge instead of those in `data` (`user_id`, `feature`, `item_id`, `text`).

    Raises:
        DataError: If there are no narratives.
    """
    tables = load_tables(data.path)
    narratives = tables.narratives if narratives is None else narratives
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
    return [Subject(history, texts[history.user_id], about.get(history.user_id, {})) for history in histories]


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
        history = self.other.told(self.stage) or self.other.history
        shuffled = Subject(replace(history, user_id=self.subject.history.user_id), self.subject.narratives)
        control = shuffled.request(self.stage, limits, draw=0)
        genuine = self.subject.request(self.stage, limits, draw=0)
        return genuine, replace(control, prompt=f"{control.prompt} control")


def controls_of(people: Sequence[Subject], share: float) -> list[Control]:
    """Draws control narratives, at most one per user. The user and the stage follow from a hash of the user id.

    The other history has no item of the genuine one, if there is such a history. Nearly all controls stay the same
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
            other = next((other for other in others if items.isdisjoint(_items(other))), others[0])
            stage = stages[_digest(subject.history.user_id)[-1] % len(stages)]
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


def rate(
    raters: Sequence[Rater],
    *,
    data: Artefact,
    draws: int,
    max_history: int,
    users: int | None,
    controls: float,
    max_cost: float | None,
    root: Path,
    narratives: pl.DataFrame | None = None,
    force: bool = False,
    engine: Engine = HERE,
) -> Artefact:
    """Builds or reuses the ratings of a narrated data set, or of a model's texts about its users.

    Writes `ratings.parquet`, `agreement.parquet` (between raters, and between the draws of each one),
    `controls.parquet` (see `rater_checks`) and `failures.parquet`.

    Args:
        raters: The raters.
        data: Prepared or narrated data.
        draws: Number of independent answers to each question. They are combined into the final score.
        max_history: Maximum number of purchases a rater reads, the latest ones.
        users: Maximum number of users, None for all with narratives.
        controls: Share of users of whom a narrative is also rated with another user's history, see `controls_of`.
        max_cost: Maximum dollars for all raters together; None for no limit.
        root: Folder of the artefacts.
        narratives: Texts to judge instead of those in `data` (`user_id`, `feature`, `item_id`, `text`).
        force: Build again. Answers in the ledgers are still reused.
        engine: Sends the requests from this process or from a cluster.

    Raises:
        DataError: If there are no narratives.
        ValueError: If `max_cost` would be exceeded, or all requests to a rater failed.
    """
    if draws < 1:
        raise ValueError(f"draws={draws} has to be at least 1.")

    def make(folder: Path) -> dict[str, int]:
        people = subjects(data, max_history=max_history, users=users, narratives=narratives)
        planted = controls_of(people, controls)
        rows: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        failures: list[tuple[str, str, str]] = []
        counts: Counter[str] = Counter()
        asked = ask_raters(
            raters,
            lambda rater: requests_of(rater, people, draws, planted),
            total=sum(1 for subject in people for _ in subject.stages()) * draws + len(planted),
            max_cost=max_cost,
            name="rate",
            engine=engine,
        )
        for rater, ledger, report in asked:
            rows += [row for subject in people for row in _judgements(subject, rater, ledger, draws)]
            pairs += [row for control in planted if (row := _control_pair(control, rater, ledger))]
            failures += report.failures
            counts.update({f"requests.{name}": count for name, count in report.counts.items()})
        ratings = pl.DataFrame(rows, schema=RATINGS, orient="row").sort("user_id", "rater", "stage", "attribute")
        ratings.write_parquet(folder / "ratings.parquet")
        agreement(ratings).write_parquet(folder / "agreement.parquet")
        table = pl.DataFrame(pairs, schema=CONTROLS, orient="row").sort("rater", "user_id")
        table.write_parquet(folder / "controls.parquet")
        write_failures(failures, folder)
        return {
            "users": len(people),
            "ratings": len(ratings),
            "control_pairs": len(table),
            "failures": len(failures),
            **dict(sorted(counts.items())),
        }

    written = None
    if narratives is not None:
        written = fingerprint({"rows": narratives.select("user_id", "feature", "text").rows()})
    request = identity.rated(
        data.fingerprint,
        data.manifest["files"]["narratives.parquet"]["sha256"],
        {rater.name: rater.recipe() for rater in raters},
        written=written,
        draws=draws,
        max_history=max_history,
        users=users,
        controls=controls,
    )
    return build(**request, root=root, make=make, force=force)


def _judgements(subject: Subject, rater: Rater, ledger: Ledger, draws: int) -> Iterator[dict[str, Any]]:
    settings = rater.endpoint.settings()
    for stage in subject.stages():
        answers, model = [], ""
        for draw in range(draws):
            found = ledger.answer(subject.request(stage, rater.request_limits, draw).key(settings))
            if found is not None:
                answers.append(answer_model(stage).model_validate_json(found.text).model_dump())
                model = found.model
        if not answers:
            continue
        scores = {name: [_score(answer[name]) for answer in answers] for name in ATTRIBUTES[stage]}
        confidences = {name: [_score(answer[f"{name}_confidence"]) for answer in answers] for name in scores}
        for attribute in scores:
            yield {
                "user_id": subject.history.user_id,
                "stage": stage,
                "features": list(JUDGED_FEATURES[stage]),
                "attribute": attribute,
                "score": final_score(scores[attribute]),
                "draws": scores[attribute],
                "confidence": stage_confidence(list(confidences.values())),
                "confidence_draws": confidences[attribute],
                "rater": rater.name,
                "model": model,
                "prompt": f"{prompt_of(stage).name} {prompt_of(stage).hash}",
            }


def _control_pair(control: Control, rater: Rater, ledger: Ledger) -> dict[str, Any] | None:
    """Row of `CONTROLS`; None unless both requests were answered."""
    settings = rater.endpoint.settings()
    answers = [ledger.answer(request.key(settings)) for request in control.requests(rater.request_limits)]
    genuine, shuffled = (
        _score(answer_model(control.stage).model_validate_json(found.text).model_dump()[CONTROLLED]) if found else None
        for found in answers
    )
    if genuine is None or shuffled is None:
        return None
    return {
        "user_id": control.subject.history.user_id,
        "stage": control.stage,
        "shuffled_user_id": control.other.history.user_id,
        "rater": rater.name,
        "genuine": genuine,
        "shuffled": shuffled,
    }


def _score(level: str) -> int:
    return LEVELS.index(level) + 1
