"""Streaming JSON lines: the same rows however the file is packed and cut, bad lines counted, damage named."""

import gzip
import json
import random

import polars as pl
import pytest

from regen.data import json_lines
from regen.data.json_lines import JsonLines
from regen.data.tables import DataError

SCHEMA = pl.Schema(
    {
        "name": pl.String(),
        "number": pl.Float64(),
        "tags": pl.List(pl.String()),
        "deep": pl.List(pl.Struct({"at": pl.Struct({"x": pl.Float64()})})),
    }
)
ABSENT = dict.fromkeys(SCHEMA.names())
ROWS = [
    {"name": f"n{i} é ü\n", "number": i / 2, "tags": ["t"] * (i % 4), "deep": [{"at": {"x": i}}]} for i in range(60)
]
LINES = [json.dumps(row, ensure_ascii=bool(i % 2)).encode() for i, row in enumerate(ROWS)]
PLAIN = b"\n".join(LINES) + b"\n"
GOOD = b'{"name": "good"}'
NOT_JSON = [
    b"garbage",
    b'{"name": "cut of',
    b'{"name": "caf\xe9"}',
    b'{"other": "\xff"}',
    b'{"name": "1"}{"name": "2"}',
    b'{"name": "1"},',
    b"{'name': 'python'}",
    b'{"number": NaN}',
    b"[" * 5000,
    b"\x00\x00",
]
NO_OBJECT = [b'[{"name": "in a list"}]', b"[1, 2]", b"7", b'"text"', b"null", b"true"]


def packed(content):
    return gzip.compress(content, mtime=0)


@pytest.fixture
def read(tmp_path):
    """Reads a file of some bytes; returns its rows and the reader."""

    def reading(content, name="rows.jsonl"):
        (tmp_path / name).write_bytes(content)
        lines = JsonLines(tmp_path / name, SCHEMA)
        chunks = list(lines.chunks())
        assert all(chunk.schema == SCHEMA and len(chunk) for chunk in chunks)
        return [row for chunk in chunks for row in chunk.to_dicts()], lines

    return reading


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.removesuffix(b"\n"),
        PLAIN.replace(b"}\n", b"}\r\n\n  \n"),
        packed(PLAIN),
        b"".join(packed(line + b"\n") for line in LINES),
        packed(PLAIN[:777]) + packed(b"") + packed(PLAIN[777:]),
        packed(PLAIN) + b"\0" * 512,
    ],
    ids=["plain", "no last line break", "blank lines", "gzip", "a member a line", "cut within a line", "padded"],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz"])
def test_packing_does_not_matter(read, content, name):
    rows, lines = read(content, name)
    assert rows == ROWS
    assert (lines.lines, lines.malformed) == (60, 0)


@pytest.mark.parametrize("chunk", [1, 100, 1000])
@pytest.mark.parametrize("block", [5, 64, 10_000])
@pytest.mark.parametrize("pack", [bytes, packed])
def test_small_chunks_give_the_same_rows(read, monkeypatch, chunk, block, pack):
    content = pack(b"\n".join([*LINES[:30], *NOT_JSON[:4], *LINES[30:]]))
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(json_lines, "READ_BYTES", block)
    rows, lines = read(content)
    assert rows == ROWS
    assert (lines.lines, lines.malformed) == (64, 4)


def test_chunks_follow_each_other_as_they_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_bytes(PLAIN)
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 500)
    monkeypatch.setattr(json_lines, "READ_BYTES", 500)
    lines = JsonLines(tmp_path / "rows.jsonl", SCHEMA)
    first = next(chunks := lines.chunks())
    assert 0 < lines.lines == len(first) < 20
    assert len(first) + sum(map(len, chunks)) == 60


@pytest.mark.parametrize("bad", NOT_JSON, ids=lambda line: repr(line[:20]))
def test_a_line_that_is_not_json_is_counted_and_the_rest_is_kept(read, bad):
    rows, lines = read(b"\n".join([GOOD, bad, GOOD]))
    assert rows == [ABSENT | {"name": "good"}] * 2
    assert (lines.lines, lines.malformed) == (3, 1)


@pytest.mark.parametrize("beside", [b"garbage", GOOD])
@pytest.mark.parametrize("bad", NO_OBJECT)
def test_a_line_that_is_json_but_no_object_is_malformed(read, bad, beside):
    rows, lines = read(b"\n".join([GOOD, bad, beside]))
    assert ABSENT not in rows
    assert lines.malformed == 1 + (beside != GOOD)


def test_a_file_of_malformed_lines_has_no_rows(read):
    rows, lines = read(b"\n".join(NOT_JSON))
    assert rows == []
    assert lines.lines == lines.malformed == len(NOT_JSON)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ({}, {}),
        ({"other": 1, "name": "x"}, {"name": "x"}),
        ({"name": "y", "tags": None, "deep": None}, {"name": "y"}),
        ({"name": 12.5}, {"name": "12.5"}),
        ({"number": "2"}, {}),
        ({"number": {"x": 1}, "name": "kept"}, {"name": "kept"}),
        ({"number": [2]}, {}),
        ({"tags": "pen"}, {}),
        ({"tags": {"0": "pen"}}, {}),
        ({"tags": ["a", None]}, {"tags": ["a", None]}),
        ({"deep": "text"}, {}),
        ({"deep": {"at": {"x": 1}}}, {}),
        ({"deep": ["text", None]}, {"deep": [None, None]}),
        ({"deep": [{}, {"at": 5}, {"at": {}}]}, {"deep": [{"at": None}, {"at": None}, {"at": {"x": None}}]}),
        ({"deep": [{"at": {"x": "1", "y": 2}}, {"at": {"x": 3}}]}, {"deep": [{"at": {"x": None}}, {"at": {"x": 3.0}}]}),
    ],
)
def test_a_value_of_the_wrong_type_is_null_at_any_depth(read, line, value):
    rows, lines = read(json.dumps({"name": "kept"} | line).encode())
    assert rows == [ABSENT | {"name": "kept"} | value]
    assert lines.malformed == 0


@pytest.mark.parametrize("content", [b"", b"\n \n", packed(b""), packed(b"\n\n")])
def test_an_empty_file_has_no_rows(read, content):
    rows, lines = read(content)
    assert rows == []
    assert (lines.lines, lines.malformed) == (0, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: no such file"):
        list(JsonLines(tmp_path / "rows.jsonl.gz", SCHEMA).chunks())


NOISE = packed(b"".join(b'{"name": "%x"}\n' % random.Random(i).getrandbits(512) for i in range(100)))


@pytest.mark.parametrize("block", [50, 2**20])
@pytest.mark.parametrize("kept", [5, 12, len(NOISE) // 2, len(NOISE) - 8, len(NOISE) - 1])
@pytest.mark.parametrize("before", [b"", packed(GOOD)])
def test_a_gzip_file_that_was_cut_off_is_named(read, monkeypatch, block, kept, before):
    monkeypatch.setattr(json_lines, "READ_BYTES", block)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cut off after [\d,]+ unpacked bytes\. Fetch the file again"):
        read(before + NOISE[:kept], "rows.jsonl.gz")


@pytest.mark.parametrize(
    "content",
    [
        NOISE[:2000] + bytes(byte ^ 0xFF for byte in NOISE[2000:2100]) + NOISE[2100:],
        NOISE[:-8] + b"\0\0\0\0" + NOISE[-4:],
        NOISE + b"no gzip member",
    ],
    ids=["in the middle", "check sum", "behind the end"],
)
def test_a_damaged_gzip_file_is_named(read, content):
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: damaged after [\d,]+ unpacked bytes .*Fetch the file again"):
        read(content, "rows.jsonl.gz")


def test_padding_may_go_on_in_the_next_block(read, monkeypatch):
    monkeypatch.setattr(json_lines, "READ_BYTES", 32)
    rows, _ = read(packed(GOOD) + b"\0" * 64)
    assert rows == [ABSENT | {"name": "good"}]
