"""Stage `rate`: language models judge the narratives and a critique of every user (paper 3.3, appendices B and G)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from regen.narratives.agreement import agreement, final_score, stage_confidence
from regen.narratives.ledger import Ledger
from regen.narratives.rater_checks import CONTROLLED, CONTROLS
from regen.narratives.raters import ATTRIBUTES, JUDGED_FEATURES, LEVELS, Rater, answer_model, ask_raters, prompt_of
from regen.narratives.report import write_failures
from regen.narratives.subjects import Control, Subject, controls_of, requests_of, subjects
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

    The data set's critiques are rated as well, the latest one of each user.

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

    written, files = None, data.manifest["files"]
    critiques = files["critiques.parquet"]["sha256"] if "critiques.parquet" in files else None
    if narratives is not None:
        critiques = None  # of the data, not of the model
        written = fingerprint({"rows": narratives.select("user_id", "feature", "text").rows()})
    request = identity.rated(
        data.fingerprint,
        files["narratives.parquet"]["sha256"],
        {rater.name: rater.recipe() for rater in raters},
        written=written,
        critiques=critiques,
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
