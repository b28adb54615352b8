"""The ledger stores every answer of an endpoint when it arrives, so that no request is paid for twice."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_random

Outcome = Literal["answered", "invalid", "refused", "lost", "duplicate"]
"""Result of an attempt. `lost`: no answer, but possibly a cost. `duplicate`: another answer was stored before."""
_BUSY = 60.0  # seconds to wait while another process writes


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        text: The message.
        model: Name of the model, as reported by the endpoint.
        created: UTC time in ISO 8601.
    """

    text: str
    model: str
    created: str


class Ledger:
    """An SQLite file, which several processes can use at once.

    Args:
        path: The file; created if it does not exist.

    Raises:
        ValueError: If the file is not a ledger.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
            self._set_up()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a ledger of regen ({error}). Move it away or set another path.") from error

    @retry(
        retry=retry_if_exception_message(match="database is locked"),  # SQLite's timeout does not cover this
        wait=wait_random(0.01, 0.1),
        stop=stop_after_delay(_BUSY),
        reraise=True,
    )
    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # write to the disk before the next request
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS attempts (key TEXT, outcome TEXT, text TEXT, detail TEXT, model TEXT, "
            "prompt_tokens INTEGER, completion_tokens INTEGER, dollars REAL, created TEXT)"
        )
        self._db.execute("CREATE UNIQUE INDEX IF NOT EXISTS answered ON attempts (key) WHERE outcome = 'answered'")
        self._db.execute("CREATE INDEX IF NOT EXISTS keys ON attempts (key)")

    def record(
        self,
        key: str,
        outcome: Outcome,
        *,
        text: str,
        model: str,
        detail: str = "",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        dollars: float = 0.0,
    ) -> None:
        """Records the result of one attempt, and returns when it is on the disk.

        If there is an answer to the same request already, that answer stays. The new one is stored as a duplicate, for
        its cost.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        values = (text, detail, model, prompt_tokens, completion_tokens, dollars, now)
        insert = "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        if not self._db.execute(insert, (key, outcome, *values)).rowcount:
            self._db.execute(insert, (key, "duplicate", *values))

    def answer(self, key: str) -> Answer | None:
        """The usable answer to a request, or None."""
        query = "SELECT text, model, created FROM attempts WHERE key = ? AND outcome = 'answered'"
        row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else Answer(*row)

    def unusable(self, key: str) -> int:
        """Number of unusable answers to a request."""
        query = "SELECT COUNT(*) FROM attempts WHERE key = ? AND outcome IN ('invalid', 'refused')"
        return int(self._db.execute(query, (key,)).fetchone()[0])

    def dollars(self, key: str) -> float:
        """Cost of all attempts at a request."""
        query = "SELECT COALESCE(SUM(dollars), 0) FROM attempts WHERE key = ?"
        return float(self._db.execute(query, (key,)).fetchone()[0])

    def take_in(self, other: Path) -> None:
        """Copies the attempts that only another ledger has.

        Raises:
            ValueError: If the file is not a ledger.
        """
        Ledger(other).close()
        self._db.execute("ATTACH DATABASE ? AS other", (str(other),))
        try:
            new = (
                "FROM other.attempts AS o WHERE NOT EXISTS (SELECT 1 FROM main.attempts AS a "
                "WHERE (a.key, a.created, a.text, a.detail) IS (o.key, o.created, o.text, o.detail))"
            )
            columns = "text, detail, model, prompt_tokens, completion_tokens, dollars, created"
            self._db.execute(f"INSERT OR IGNORE INTO attempts SELECT * {new}")
            self._db.execute(f"INSERT INTO attempts SELECT key, 'duplicate', {columns} {new}")  # answered here
        finally:
            self._db.execute("DETACH DATABASE other")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
