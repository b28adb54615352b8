"""Artefacts: built once, whole or not at all, verified before they are used again."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regen.storage import artefacts
from regen.storage.artefacts import Artefact, DamagedArtefactError, build, file_hash, fingerprint, open_artefact

REPOSITORY = Path(__file__).parent.parent


class Maker:
    """Writes two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, int]:
        self.calls += 1
        (folder / "rows.txt").write_text("one\ntwo\n")
        (folder / "parts").mkdir()
        (folder / "parts" / "rest.bin").write_bytes(bytes(100))
        return {"rows": 2}


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process remembers of verified folders starts empty."""
    monkeypatch.setattr(artefacts, "_verified", {})


def built(root: Path, make: Callable[[Path], dict[str, int]], **changed: Any) -> Artefact:
    request: dict[str, Any] = {"config": {"factors": 128}, "inputs": {"prepared": "abc"}, **changed}
    return build("encode", root=root, make=make, **request)


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".locks")


def test_manifest_tells_how_it_was_made(tmp_path: Path, make: Maker) -> None:
    artefact = built(tmp_path, make, libraries=["filelock"])
    manifest = json.loads((artefact.path / "manifest.json").read_text())
    assert artefact.path == tmp_path / f"encode-{artefact.fingerprint}"
    assert manifest == artefact.manifest
    assert manifest["config"] == {"factors": 128}
    assert manifest["inputs"] == {"prepared": "abc"}
    assert manifest["counts"] == {"rows": 2}
    assert set(manifest["libraries"]) == {"filelock"}
    assert set(manifest["made_with"]) == {"python", "regen"}
    assert manifest["files"]["parts/rest.bin"]["size"] == 100
    assert manifest["files"]["rows.txt"]["sha256"] == file_hash(artefact.path / "rows.txt")


def test_same_request_is_reused(tmp_path: Path, make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="regen.storage.artefacts")
    first, second = built(tmp_path, make), built(tmp_path, make)
    assert make.calls == 1
    assert first == second
    assert "encode: built" in caplog.text
    assert "encode: reused" in caplog.text


@pytest.mark.parametrize(
    "change",
    [{"config": {"factors": 64}}, {"inputs": {"prepared": "abd"}}, {"libraries": ["filelock"]}, {"version": 2}],
    ids=lambda change: next(iter(change)),
)
def test_any_change_makes_a_new_artefact(tmp_path: Path, make: Maker, change: dict[str, Any]) -> None:
    assert built(tmp_path, make).path != built(tmp_path, make, **change).path
    assert make.calls == 2


def test_hashes_are_computed_once_per_process(tmp_path: Path, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(tmp_path, make).path
    artefacts._verified.clear()
    hashed: list[Path] = []
    monkeypatch.setattr(artefacts, "file_hash", lambda file: hashed.append(file) or file_hash(file))
    for _ in range(3):
        open_artefact(path)
    assert len(hashed) == 2


def flip_a_byte(path: Path) -> None:
    (path / "rows.txt").write_text("one\nTwo\n")


def truncate(path: Path) -> None:
    (path / "parts" / "rest.bin").write_bytes(bytes(99))


def delete(path: Path) -> None:
    (path / "rows.txt").unlink()


def garble_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def delete_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def edit_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["config"]["factors"] = 256
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip_a_byte, "rows.txt: its content changed"),
        (truncate, "rest.bin: 99 bytes instead of 100"),
        (delete, "rows.txt: missing"),
        (garble_manifest, "not a readable manifest"),
        (delete_manifest, "not a readable manifest"),
        (empty_manifest, "not a readable manifest"),
        (edit_manifest, "altered"),
    ],
)
def test_damage_is_named_and_built_anew(
    tmp_path: Path, make: Maker, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], complaint: str
) -> None:
    path = built(tmp_path, make).path
    damage(path)
    artefacts._verified.clear()  # as the next process sees it
    with pytest.raises(DamagedArtefactError, match=complaint):
        open_artefact(path)
    again = built(tmp_path, make)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert complaint in warnings[0]
    assert str(path) in warnings[0]
    assert make.calls == 2
    assert open_artefact(path) == again
    assert entries(tmp_path) == [path.name]


def test_damage_after_verification_is_seen_by_its_time(tmp_path: Path, make: Maker) -> None:
    path = built(tmp_path, make).path
    delete(path)
    with pytest.raises(DamagedArtefactError, match="missing"):
        open_artefact(path)


def test_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such artefact"):
        open_artefact(tmp_path / "encode-000000000000")


def test_force_builds_anew(tmp_path: Path, make: Maker) -> None:
    first = built(tmp_path, make)
    second = built(tmp_path, make, force=True)
    assert make.calls == 2
    assert entries(tmp_path) == [first.path.name] == [second.path.name]


def test_failure_keeps_the_old_and_removes_the_new(tmp_path: Path, make: Maker) -> None:
    path = built(tmp_path, make).path

    def fail(folder: Path) -> dict[str, int]:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no factors")

    with pytest.raises(RuntimeError, match="no factors") as caught:
        built(tmp_path, fail, force=True)
    assert str(path) in caught.value.__notes__[0]
    assert entries(tmp_path) == [path.name]
    assert open_artefact(path).path == path


class WrappedError(Exception):
    """As libraries wrap a system's error in one of their own."""


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), WrappedError("No space left on device (os error 28)")],
    ids=["system", "library"],
)
def test_full_disk_says_where_and_how_much(
    tmp_path: Path, make: Maker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    kept = built(tmp_path, make, config={}).path
    write_text = Path.write_text

    def no_space(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name == "rows.txt":
            raise error
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(
        OSError, match=r"disk full while building .*encode-.* GiB are free.*nothing already built"
    ) as full:
        built(tmp_path, make)
    assert full.value.errno == errno.ENOSPC
    assert entries(tmp_path) == [kept.name]
    assert open_artefact(kept).path == kept


@pytest.mark.parametrize(
    ("config", "kind", "complaint"),
    [
        ({"cf": {"path": Path("x")}}, TypeError, r"config\.cf\.path is a \w*Path"),
        ({"layers": [1, {2}]}, TypeError, r"config\.layers\[1\] is a set"),
        ({"by_seed": {1: "a"}}, TypeError, "config.by_seed: key 1 is a int"),
        ({"lr": float("nan")}, ValueError, "config.lr is nan"),
        ({"lr": float("inf")}, ValueError, "config.lr is inf"),
    ],
)
def test_config_must_be_plain_json(
    tmp_path: Path, make: Maker, config: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        built(tmp_path, make, config=config)
    assert make.calls == 0


def test_missing_library_is_named(tmp_path: Path, make: Maker) -> None:
    with pytest.raises(ModuleNotFoundError, match="'no-such-distribution' is not installed"):
        built(tmp_path, make, libraries=["no-such-distribution"])


def test_fingerprint_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"b": [1, 2]}) != fingerprint({"b": [2, 1]})
    assert len(fingerprint({})) == 12


SLOW_BUILD = """
import logging, sys, time
from pathlib import Path
from regen.storage.artefacts import build

logging.basicConfig(level=logging.INFO, format="%(message)s")
root, seconds = Path(sys.argv[1]), float(sys.argv[2])

def make(folder):
    (folder / "rows.txt").write_text("one")
    with (root.parent / "builds.txt").open("a") as counter:
        counter.write("built\\n")
    time.sleep(seconds)
    return {"rows": 1}

print(build("encode", root=root, config={}, make=make).path)
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(root), str(seconds)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_once(tmp_path: Path) -> None:
    jobs = [start(tmp_path / "data", 1.5) for _ in range(2)]
    answers = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert (tmp_path / "builds.txt").read_text() == "built\n"
    logs = "".join(log for _, log in answers)
    assert logs.count("encode: built") == logs.count("encode: reused") == 1
    assert "another process is building" in logs


def test_killed_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    root = tmp_path / "data"
    job = start(root, 60)
    deadline = time.monotonic() + 30
    while not (tmp_path / "builds.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    (root / ".encode-of-another.partial-1").mkdir()
    (dead,) = root.glob(".encode-????????????.partial-*")
    assert not list(root.glob("encode-*"))

    path = build("encode", root=root, config={}, make=Maker()).path
    assert not dead.exists()
    assert entries(root) == [".encode-of-another.partial-1", path.name]
