"""Artefacts on an fsspec path: what one machine built, another fetches; what is damaged there is built anew."""

import json

import fsspec
import pytest

from regen.storage.artefacts import build, open_artefact


@pytest.fixture(params=["file", "memory"])
def mirror(request, tmp_path, monkeypatch):
    url = f"file://{tmp_path}/mirror" if request.param == "file" else f"memory://{tmp_path.name}"
    monkeypatch.setenv("REGEN_MIRROR", url)
    files, root = fsspec.core.url_to_fs(url)
    return files, root


@pytest.fixture
def machine(tmp_path):
    """Builds an artefact on a machine of some name; gives it and how often it was made there."""
    made = []

    def on(name, **options):
        def make(folder):
            made.append(name)
            (folder / "parts").mkdir()
            (folder / "parts" / "one.txt").write_text("one")
            (folder / "two.txt").write_text("two")
            return {"rows": 2}

        return build("stage", root=tmp_path / name, config={"a": 1}, make=make, **options), made.count(name)

    return on


def test_what_one_machine_built_another_fetches(mirror, machine):
    first, _ = machine("a")
    second, made = machine("b")
    assert made == 0
    assert second.path != first.path
    assert second.manifest == first.manifest
    assert (second.path / "parts" / "one.txt").read_text() == "one"
    assert machine("a")[1] == 1


def test_half_an_upload_is_none(mirror, machine):
    files, root = mirror
    first, _ = machine("a")
    files.rm_file(f"{root}/{first.path.name}/manifest.json")
    assert machine("b")[1] == 1
    assert files.exists(f"{root}/{first.path.name}/manifest.json")


def test_a_lost_file_is_told_of_and_built_here(mirror, machine, caplog):
    files, root = mirror
    first, _ = machine("a")
    files.rm_file(f"{root}/{first.path.name}/two.txt")
    assert machine("b")[1] == 1
    assert "is incomplete" in caplog.text
    assert machine("c")[1] == 0


def test_a_changed_file_is_built_anew(mirror, machine, caplog):
    files, root = mirror
    first, _ = machine("a")
    files.pipe_file(f"{root}/{first.path.name}/two.txt", b"twa")
    second, made = machine("b")
    assert made == 1
    assert "content changed" in caplog.text
    assert open_artefact(second.path).manifest["counts"] == {"rows": 2}
    assert machine("c")[1] == 0


def test_a_manifest_that_points_elsewhere_is_refused(mirror, machine, tmp_path):
    files, root = mirror
    first, _ = machine("a")
    manifest = json.loads((first.path / "manifest.json").read_text())
    manifest["files"]["../../stolen.txt"] = manifest["files"]["two.txt"]
    files.pipe_file(f"{root}/{first.path.name}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ValueError, match=r"REGEN_MIRROR=.*names '../../stolen.txt'"):
        machine("b")
    assert not list(tmp_path.rglob("stolen.txt"))


def test_force_replaces_what_is_there(mirror, machine):
    first, _ = machine("a")
    assert machine("b", force=True)[1] == 1
    assert machine("c")[0].manifest["created"] >= first.manifest["created"]


def test_a_store_that_cannot_be_used_is_named(machine, monkeypatch):
    monkeypatch.setenv("REGEN_MIRROR", "nonsense://bucket")
    with pytest.raises(ValueError, match="REGEN_MIRROR=nonsense://bucket: .*unset the variable"):
        machine("a")
