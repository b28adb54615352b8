"""Every file of conf/ composes, and every number in them has a range; found by glob, so that none can be forgotten."""

import contextlib
import copy
import dataclasses
import math
import re
import subprocess
import sys
import time
from functools import cache

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, ValidationError

from regen.config.command_line import run_hydra
from regen.config.errors import OutOfRangeError, check
from regen.config.ranges import ranges
from regen.config.registration import register
from regen.config.schema import CONF, DECIDED

VERTICALS = sorted(CONF.glob("vertical/*.yaml"))
GROUPED = sorted(path for path in CONF.glob("*/*.yaml") if path not in VERTICALS)
ROOTS = sorted(path for path in CONF.glob("*.yaml") if "Config@_here_" in path.read_text())
OPTIONS = {
    group: [path.stem for path in GROUPED if path.parent.name == group]
    for group in sorted({path.parent.name for path in GROUPED} - {"experiment"})
}
NEEDED = {
    "lm/hf": ["lm.pretrained=somewhere"],
    "split/file": ["split.folder=somewhere"],
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


@cache
def composed_options(root, place):
    """`train`, or another root, with the option at this place of every group that has so many."""
    overrides = []
    for group, names in OPTIONS.items():
        if (group == "rater") == (root == "rate") and place < len(names):
            name = names[place]
            chosen = f"[{name}]" if group in ("rater", "feature", "logger") else name
            overrides += [f"{group}={chosen}", *NEEDED.get(f"{group}/{name}", [])]
    return composed(root, overrides)


@cache
def composed_option(path):
    """A root with this option of a group, or the root itself."""
    group, name = path.parent.name, path.stem
    if path.parent == CONF:
        return composed(name, NEEDED.get(name, []))
    if group == "experiment":  # changes other groups
        return composed("train", [f"experiment={name}"])
    return composed_options("rate" if group == "rater" else "train", OPTIONS[group].index(name))


@pytest.mark.parametrize("path", [*GROUPED, *ROOTS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_option_and_every_root_composes_and_resolves(path):
    assert OmegaConf.to_container(composed_option(path), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]], ids=["help", "cfg"])
@pytest.mark.parametrize("name", [path.stem for path in ROOTS])
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
    assert {"name"} < vertical.keys() <= {"name", "file", "file_2023"}
    assert vertical.pop("name") == path.stem
    assert all(re.fullmatch(r"\w+", file, re.ASCII) for file in vertical.values())


def test_each_year_has_its_verticals():
    verticals = [yaml.safe_load(path.read_text()) for path in VERTICALS]
    old, new = ({vertical.get(key) for vertical in verticals} - {None} for key in ("file", "file_2023"))
    assert (len(old), len(new)) == (29, 33)
    assert old - new == {"AMAZON_FASHION", "Luxury_Beauty", "Prime_Pantry"}
    assert new - old == {
        *("Amazon_Fashion", "Baby_Products", "Beauty_and_Personal_Care", "Handmade_Products"),
        *("Health_and_Household", "Health_and_Personal_Care", "Subscription_Boxes"),
    }


@pytest.mark.parametrize("year", [2018, 2023])
def test_a_vertical_that_a_year_lacks_is_refused(year):
    cfg = composed("prepare", [f"source=amazon{year}"])
    for path in VERTICALS:
        vertical = yaml.safe_load(path.read_text())
        cfg.vertical.update({key: vertical.get(key) for key in cfg.vertical})
        lacks = not vertical.get("file" if year == 2018 else "file_2023")
        says = f"source=amazon{year} has no files of vertical={path.stem}"
        with pytest.raises(InterpolationResolutionError, match=says) if lacks else contextlib.nullcontext():
            check(cfg)


def test_a_vertical_decides_which_files_are_read():
    source = composed("prepare", ["source=amazon2018", "vertical=video_games"]).source
    assert source.reviews.endswith("/Video_Games_5.json.gz")
    assert source.metadata.endswith("/meta_Video_Games.json.gz")
    source = composed("prepare", ["source=amazon2023", "vertical=fashion"]).source
    assert source.reviews.endswith("/review_categories/Amazon_Fashion.jsonl.gz")
    assert source.metadata.endswith("/meta_categories/meta_Amazon_Fashion.jsonl.gz")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_yaml_stays_small(path):
    text = path.read_text()
    assert text.count("\n") <= 60, "split it, or make it a delta"
    assert len(re.findall(r"_target_:", text)) <= 5


VALUES = [-1, 0, 10**30, math.nan, math.inf]
FREE = {
    "generation": "transformers' GenerationConfig checks it",
    "betas": "a pair",
}  # of which the schema knows nothing


def numbers(node):
    """Node, name and range of every number of a composed config; a number without a range fails."""
    schema = OmegaConf.get_type(node)
    known = ranges(schema) if dataclasses.is_dataclass(schema) else {}
    for key in node:
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing() and key not in FREE:
            yield from numbers(value)
        elif isinstance(value, ListConfig) or key in FREE:
            continue
        elif key in known:
            yield node, key, known[key]
        elif dataclasses.is_dataclass(schema):
            kind = {item.name: getattr(item.type, "__name__", str(item.type)) for item in dataclasses.fields(schema)}[
                key
            ]
            assert not {"int", "float"} & set(kind.split(" | ")), f"{schema.__name__}.{key} has no range"


def test_every_number_is_inside_its_range_or_refused_with_it():
    seen = set()
    for path in (*GROUPED, *ROOTS):
        cfg = copy.deepcopy(composed_option(path))
        for node, key, allowed in numbers(cfg):
            name = node._get_full_key(key)
            if (name, str(allowed)) in seen:
                continue
            seen.add((name, str(allowed)))
            before = node._get_node(key)._value()
            for value in VALUES:
                try:
                    node[key] = value
                except ValidationError:
                    assert not isinstance(value, int), (path, name, value)  # an integer that cannot be nan
                    continue
                if allowed.holds(value):
                    check(node)
                    continue
                with pytest.raises(OutOfRangeError) as refused:
                    check(node)
                message = str(refused.value)
                assert "\n" not in message
                assert message == f"{name}={node[key]} has to be {allowed} ({allowed.unit})."
            node[key] = before
    assert len(seen) > 100


@pytest.mark.slow  # composes a config for each argument
def test_what_the_project_decides_is_refused_with_the_reason(monkeypatch, capsys):
    for name, reason in DECIDED.items():
        monkeypatch.setattr(sys, "argv", ["train", f"trainer.{name}=1"])
        with pytest.raises(SystemExit) as stop:
            run_hydra(lambda cfg: None, config_name="train")
        assert stop.value.code == 2
        assert capsys.readouterr().err.endswith(f"'trainer.{name}' cannot be set: {reason}.\n")


@pytest.mark.parametrize(
    "override",
    ["adapter.lr=nan", "trainer.fast_dev_run=perhaps"],
)
def test_the_command_refuses_in_one_line_and_makes_nothing(override, tmp_path):
    places = [f"paths.data_dir={tmp_path}/data", f"paths.runs_dir={tmp_path}/runs", f"hydra.run.dir={tmp_path}/logs"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "train.py", override, *places],
        capture_output=True,
        text=True,
        cwd=CONF.parents[1],
        check=False,
    )
    assert time.perf_counter() - began < 30  # seconds; what it takes on an idle machine is in benchmarks/commands.py
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("Error executing job")]
    assert line.startswith(f"error: {override} has to be ")
    assert {path.name for path in tmp_path.iterdir()} <= {"logs"}
