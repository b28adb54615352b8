"""The ledger: every answer an endpoint gave, kept from the moment it arrived, so that none is paid for twice."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_random

Outcome = Literal["answered", "invalid", "refused", "lost", "duplicate"]
"""What an attempt came to; `lost` had no answer but may have cost money, `duplicate` had one when another was kept."""
_BUSY = 60.0  # seconds to wait for another process that writes


@dataclass(frozen=True)
class Answer:
    """What came back for a request.

    Attributes:
        text: The message.
        model: As the endpoint names what answered.
        created: UTC time in ISO 8601.
    """

    text: str
    model: str
    created: str


class Ledger:
    """An SQLite file; several processes may use it at once.

    Args:
        path: Made if it does not exist.

    Raises:
        ValueError: If the file is no ledger.
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
        retry=retry_if_exception_message(match="database is locked"),  # SQLite does not wait for who sets the mode
        wait=wait_random(0.01, 0.1),
        stop=stop_after_delay(_BUSY),
        reraise=True,
    )
    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # on the disk before the next request is sent
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
        """Writes what one attempt came to, usable or not; it is on the disk when this returns.

        If another process has recorded an answer to the same request, that answer stays, and this one is kept for its
        cost.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        values = (text, detail, model, prompt_tokens, completion_tokens, dollars, now)
        insert = "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        if not self._db.execute(insert, (key, outcome, *values)).rowcount:
            self._db.execute(insert, (key, "duplicate", *values))

    def answer(self, key: str) -> Answer | None:
        """The usable answer to a request, if it was given."""
        query = "SELECT text, model, created FROM attempts WHERE key = ? AND outcome = 'answered'"
        row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else Answer(*row)

    def unusable(self, key: str) -> int:
        """How many answers to this request could not be used."""
        query = "SELECT COUNT(*) FROM attempts WHERE key = ? AND outcome IN ('invalid', 'refused')"
        return int(self._db.execute(query, (key,)).fetchone()[0])

    def dollars(self, key: str) -> float:
        """What all attempts at this request cost."""
        query = "SELECT COALESCE(SUM(dollars), 0) FROM attempts WHERE key = ?"
        return float(self._db.execute(query, (key,)).fetchone()[0])

    def take_in(self, other: Path) -> None:
        """Adds what another ledger holds and this one does not.

        Raises:
            ValueError: If the file is no ledger.
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
            self._db.execute(f"INSERT INTO attempts SELECT key, 'duplicate', {columns} {new}")  # answered here already
        finally:
            self._db.execute("DETACH DATABASE other")

    def close(self) -> None:
        """Ends the connection."""
        self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
