"""Streams JSON lines of any size into Polars. Bad lines are counted; a damaged file is an error."""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Never

import polars as pl
from isal import isal_zlib
from tqdm import tqdm

from regen.data.tables import DataError

READ_BYTES = 4 * 2**20
CHUNK_BYTES = 32 * 2**20
_GZIP = 31  # window bits for zlib: expect a gzip header and verify the checksum


class Lines(ABC):
    """Reads a file of one row per line, chunk by chunk.

    Args:
        path: The file, plain or gzipped.
        schema: Columns to read. Missing ones are null; other columns of the file are ignored.

    Attributes:
        lines: Number of rows read so far, without blank lines.
        malformed: Number of them that were dropped.
    """

    def __init__(self, path: Path, schema: pl.Schema) -> None:
        self.path = path
        self.schema = schema
        self.lines = 0
        self.malformed = 0

    def chunks(self) -> Iterator[pl.DataFrame]:
        """Yields the file's rows in order, about 32 MB of text at a time, with a progress bar.

        Raises:
            DataError: If the file is missing, damaged or truncated.
        """
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file.")
        texts = whole_lines(self.path)
        with ThreadPoolExecutor(1) as ahead:  # unpacks the next chunk while Polars parses this one
            waiting = ahead.submit(next, texts, None)
            while (text := waiting.result()) is not None:
                waiting = ahead.submit(next, texts, None)
                if not (rows := self._parse(text)).is_empty():
                    yield rows

    @abstractmethod
    def _parse(self, text: bytes) -> pl.DataFrame:
        """Rows of some whole lines."""


class JsonLines(Lines):
    """Reads JSON objects, one per line.

    A value of the wrong type is null, except that a text column stores any other value as its JSON text. A line that is
    not a JSON object with at least one of the keys is dropped and counted.
    """

    def _parse(self, text: bytes) -> pl.DataFrame:
        try:
            rows = self._read(text)
        except pl.exceptions.PolarsError:
            good = [line for line in text.split(b"\n") if line.strip() and self._is_object(line)]
            rows = self._read(b"\n".join(good)) if good else pl.DataFrame(schema=self.schema)
        filled = rows.filter(~pl.all_horizontal(pl.all().is_null()))  # JSON, but not an object with any of the keys
        self.lines += len(rows)
        self.malformed += len(rows) - len(filled)
        return filled

    def _read(self, text: bytes) -> pl.DataFrame:
        if not text.strip():
            return pl.DataFrame(schema=self.schema)
        return pl.read_ndjson(BytesIO(text), schema=self.schema, ignore_errors=True)

    def _is_object(self, line: bytes) -> bool:
        try:
            good = isinstance(json.loads(line.decode()), dict) and not self._read(line).is_empty()
        except (ValueError, RecursionError, pl.exceptions.PolarsError):  # also bytes that are not UTF-8
            good = False
        if not good:
            self.lines += 1
            self.malformed += 1
        return good


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yields the content of a plain or gzipped file in chunks of about 32 MB that end at a line break.

    Raises:
        DataError: If the file is damaged or truncated.
    """
    size, kept, parts = path.stat().st_size, b"", []
    held = 0
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=size < 2 * CHUNK_BYTES) as bar:
        for number, part in enumerate(_unpacked(path, bar)):
            parts.append(part if number else part.removeprefix(codecs.BOM_UTF8))
            held += len(part)
            if held >= CHUNK_BYTES:
                text = b"".join([kept, *parts])
                cut = text.rfind(b"\n") + 1
                kept, parts = text[cut:], []
                held = len(kept)
                if cut:
                    yield text[:cut]
    if rest := b"".join([kept, *parts]):
        yield rest


def _unpacked(path: Path, bar: "tqdm[Never]") -> Iterator[bytes]:
    """Yields the content of the file, unpacked if it is gzip, with one or several members."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        unpacker, written, begun = isal_zlib.decompressobj(_GZIP), 0, False
        while block := file.read(READ_BYTES):
            bar.update(len(block))
            if not packed:
                yield block
                continue
            while block.strip(b"\0") if unpacker.eof else block:  # zero padding may follow the last member
                if unpacker.eof:
                    unpacker = isal_zlib.decompressobj(_GZIP)
                try:
                    text = unpacker.decompress(block)
                except isal_zlib.error as error:  # type: ignore[misc]
                    raise DataError(
                        f"{path}: damaged after {written:,} unpacked bytes ({error}). Fetch the file again."
                    ) from error
                begun = True
                written += len(text)
                yield text
                block = unpacker.unused_data if unpacker.eof else b""
        if packed and begun and not unpacker.eof:
            raise DataError(f"{path}: cut off after {written:,} unpacked bytes. Fetch the file again.")
