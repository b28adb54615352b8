"""Stage `narrate`: lets a narrator write the six features of every user, and critiques (paper 3.2)."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from regen.data.critiques import Pairs, pairs_of
from regen.data.prepare import load_tables
from regen.data.tables import FEATURES, NARRATIVE_KEY, DataError
from regen.narratives.critiques import WRITTEN_CRITIQUES
from regen.narratives.endpoint import CHARACTERS_PER_TOKEN, Endpoint
from regen.narratives.histories import UserHistory, draw_users, user_histories
from regen.narratives.ledger import Ledger
from regen.narratives.narrators import NARRATED, Narrator, Work
from regen.narratives.prompts import Request
from regen.narratives.report import RunLimits, write_failures
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

QUOTE_WORDS = 8  # a narrative with this many words in a row of a review quotes it


def narrate(
    narrator: Narrator,
    *,
    prepared: Artefact,
    max_history: int,
    users: int | None,
    root: Path,
    shared_category: float | None = None,
    force: bool = False,
) -> Artefact:
    """Builds or reuses a data set with the narratives and critiques of a narrator.

    The artefact has the prepared items and interactions and the new texts, so it can replace prepared data.
    `failures.parquet` lists the requests without an answer.

    Args:
        narrator: Writes the texts.
        prepared: The prepared data. Their own narratives and critiques are not copied.
        max_history: Maximum number of purchases the narrator reads, and of critiques per user, the latest ones.
        users: Maximum number of users, None for all.
        root: Folder of the artefacts.
        shared_category: Two adjacent purchases have a critique if they share this much of their category path, see
            `pairs_of`; None for no critiques.
        force: Build again. Answers in the ledger are still reused.

    Raises:
        DataError: If no user bought an item with a title.
    """
    limits = {"max_history": max_history, "users": users, "shared_category": shared_category}
    work = work_of(prepared, max_history=max_history, users=users, shared_category=shared_category)

    def make(folder: Path) -> dict[str, int]:
        written = narrator.write(work)
        frame = pl.DataFrame(written.rows, schema=NARRATED, orient="row").sort(NARRATIVE_KEY)
        for name in ("items", "interactions"):
            _link(prepared.path / f"{name}.parquet", folder / f"{name}.parquet")
        frame.write_parquet(folder / "narratives.parquet")
        write_failures(written.failures, folder)
        reviews = load_tables(prepared.path).interactions
        return {
            "users": work.users,
            "narratives": len(frame),
            "narratives.null": frame["text"].null_count(),
            "narratives.quoting_a_review": count_quotes(frame, reviews),
            "failures": len(written.failures),
            **{f"narratives.{feature}": int((frame["feature"] == feature).sum()) for feature in FEATURES},
            **_write_critiques(written.critiques, work.pairs, folder),
            **written.counts,
        }

    request = identity.narrated(prepared.fingerprint, narrator.recipe(), **limits)
    return build(**request, root=root, make=make, force=force)


def _write_critiques(texts: list[dict[str, Any]], pairs: Pairs | None, folder: Path) -> dict[str, int]:
    """Writes `critiques.parquet` and returns its counts; nothing without pairs."""
    if pairs is None:
        return {}
    frame = pairs.with_texts(texts, WRITTEN_CRITIQUES)
    frame.write_parquet(folder / "critiques.parquet")
    return {"pairs": len(pairs.rows), "critiques": len(frame), "critiques.distinct": len(texts)}


def work_of(prepared: Artefact, *, max_history: int, users: int | None, shared_category: float | None) -> Work:
    """What there is to write about a prepared data set; arguments as for `narrate`.

    Raises:
        DataError: If there is no history.
    """
    tables = load_tables(prepared.path)

    def histories() -> Iterator[UserHistory]:
        return user_histories(tables, max_history=max_history, users=users)

    titled = tables.items.filter(pl.col("title").is_not_null()).select("item_id")
    buyers = tables.interactions.join(titled, on="item_id", how="semi")["user_id"]
    total = buyers.n_unique()
    if not total:
        raise DataError(f"{prepared.path}: nobody bought an item with a title, so there is nobody to write about.")
    pairs = None
    if shared_category is not None:
        chosen = None if users is None else draw_users(buyers, users)
        pairs = pairs_of(tables, shared=shared_category, users=chosen, most=max_history)
    return Work(histories, total if users is None else min(users, total), pairs)


def estimate(
    requests: Iterator[Request], *, endpoint: Endpoint, ledger: Path, limits: RunLimits
) -> Mapping[str, float | int | None]:
    """Number of requests and maximum cost of a run, with four characters per token and answers of maximum length."""
    settings = endpoint.settings()
    total = known = 0
    prompt_tokens = 0.0
    with Ledger(ledger) if ledger.exists() else nullcontext() as answers_so_far:
        for request in requests:
            total += 1
            if answers_so_far is not None and answers_so_far.answer(request.key(settings)) is not None:
                known += 1
            else:
                prompt_tokens += request.characters / CHARACTERS_PER_TOKEN
    completion_tokens = (total - known) * endpoint.sampling.max_tokens
    return {
        "requests": total,
        "already_answered": known,
        "prompt_tokens": round(prompt_tokens),
        "completion_tokens_at_most": completion_tokens,
        "dollars_at_most": None if limits.price is None else limits.price.of(prompt_tokens, completion_tokens),
    }


def count_quotes(narratives: pl.DataFrame, interactions: pl.DataFrame) -> int:
    """Number of narratives that share eight words in a row with a review of their user."""
    by_user = narratives.drop_nulls("text").group_by("user_id").agg("text")
    reviews = interactions.drop_nulls("review_text").group_by("user_id").agg("review_text")
    return sum(
        bool(_grams(text) & quoted)
        for texts, written in by_user.join(reviews, on="user_id").select("text", "review_text").iter_rows()
        for quoted in [set().union(*map(_grams, written))]
        for text in texts
    )


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    return {tuple(words[at : at + QUOTE_WORDS]) for at in range(len(words) - QUOTE_WORDS + 1)}


def _link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
