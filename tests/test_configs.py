"""Every file of conf/ composes; found by glob, so that none can be forgotten."""

import contextlib
import re
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from regen.config.command_line import run_hydra
from regen.config.schema import CONF, register

VERTICALS = sorted(CONF.glob("vertical/*.yaml"))
GROUPED = sorted(path for path in CONF.glob("*/*.yaml") if path not in VERTICALS)
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml") if "/schema/root/" in path.read_text())
NEEDED = {
    "lm/hf": ["lm.pretrained=somewhere"],
    "content/hf": ["content.pretrained=somewhere"],
    "source/jsonl": ["source.folder=somewhere"],
    "narrator/openai": ["narrator.model=some"],
    "rater/openai": ["rater.openai.model=some"],
    "export": ["run=one", "out=two"],
    "serve": ["checkpoint=somewhere"],
    "rate": ["rater.openai.model=some"],
    "side_by_side": ["a=one", "b=two", "rater.openai.model=some"],
}


def composed(name: str, overrides: list[str]):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides)


@pytest.mark.parametrize("path", GROUPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_option_composes_and_resolves(path):
    group, name = path.parent.name, path.stem
    root = "rate" if group == "rater" else "train"
    chosen = f"[{name}]" if group == "rater" else name
    cfg = composed(root, [f"{group}={chosen}", *NEEDED.get(f"{group}/{name}", [])])
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", ROOTS)
def test_every_root_composes(name):
    assert OmegaConf.to_container(composed(name, NEEDED.get(name, [])), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]], ids=["help", "cfg"])
@pytest.mark.parametrize("name", ROOTS)
def test_every_command_shows_its_help_and_config(name, flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *flags, *NEEDED.get(name, [])])
    with contextlib.suppress(SystemExit):
        run_hydra(lambda cfg: None, config_name=name)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert len(shown.out.splitlines()) >= 3


@pytest.mark.parametrize("path", VERTICALS, ids=lambda path: path.stem)
def test_every_vertical_names_itself_and_its_files(path):
    vertical = yaml.safe_load(path.read_text())
    assert vertical.keys() == {"name", "file"}
    assert vertical["name"] == path.stem
    assert vertical["file"].isascii()


def test_a_vertical_decides_which_files_are_read():
    source = composed("prepare", ["source=amazon2018", "vertical=video_games"]).source
    assert source.reviews.endswith("/Video_Games_5.json.gz")
    assert source.metadata.endswith("/meta_Video_Games.json.gz")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_yaml_stays_small(path):
    text = path.read_text()
    assert text.count("\n") <= 60, "split it, or make it a delta"
    assert len(re.findall(r"_target_:", text)) <= 5
