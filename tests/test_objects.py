"""A config as typed objects, the plan made from it, and what is said of a run that another version made."""

import importlib
import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from regen.commands import COMMANDS
from regen.commands.plan import planned
from regen.config.objects import Component, build_object, plain, read_run_config, typed
from regen.config.registration import register
from regen.config.schema import CONF, TrainConfig
from regen.pipeline import open_run, plan

REPOSITORY = Path(__file__).parent.parent

OPTIONS = [[], ["encoder=text", "narrator=template"], ["narrator=openai", "narrator.model=m", "engine=ray"]]


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "text", "endpoint"])
def test_objects_hold_what_was_composed_and_give_it_back(options):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", options)
    config = typed(cfg)
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert plain(config) == values
    assert plain(build_object(TrainConfig, yaml.safe_load(yaml.safe_dump(values)))) == values
    for name in ("source", "adapter", "lm", "tuning", "engine", "optimizer", "scheduler"):
        assert isinstance(getattr(config, name), Component), name
    for name in ("paths", "split", "encoder", "cf", "content", "narrator", "data", "training", "evaluation", "trainer"):
        assert is_dataclass(getattr(config, name)), name


def test_no_setting_can_be_changed(small_config):
    config = small_config()
    for node in (config, config.training, config.feature["purchase_reason"], config.adapter):
        with pytest.raises(FrozenInstanceError):
            setattr(node, fields(node)[0].name, None)


def test_a_source_that_cannot_be_loaded_is_named():
    with pytest.raises(ValueError, match="_target_=my_regen_of_nobody.Shop cannot be loaded: No module named"):
        Component({"_target_": "my_regen_of_nobody.Shop"}).build()


def test_a_run_of_another_version_is_named(small_config, tmp_path):
    run = open_run(small_config("encoder=random"))
    assert plain(read_run_config(run.folder)) == plain(run.config)
    config = {**plain(run.config), "shape": "round"}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"another version of regen made this run .*'shape'.*Train it again"):
        read_run_config(run.folder)
    config = {**plain(run.config), "encoder": {"name": "both"}}  # as before encoders had parts
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"another version of regen made this run \(Encoder lacks dim, .*parts\)"):
        read_run_config(run.folder)
    with pytest.raises(FileNotFoundError, match="there is no config.yaml in it"):
        read_run_config(tmp_path)


@pytest.mark.usefixtures("no_sentence_encoder")
def test_a_plan_names_what_is_built_then_and_builds_nothing(small_config, tmp_path):
    config = small_config("encoder=both", "narrator=template")
    before = plan(config)
    assert [stage.stage for stage in before.artefacts] == ["prepare", "narrate", "encode cf", "encode content"]
    assert not any(stage.exists for stage in before.artefacts)
    assert list(tmp_path.iterdir()) == []
    run = open_run(config)
    assert before.run == run.folder
    built = [run.inputs.prepared.path, *(made.path for made in run.inputs.encoded.values())]
    assert [stage.folder for stage in before.artefacts][1:] == built
    assert all(stage.exists for stage in plan(config).artefacts)
    text = planned(config)
    assert re.search(rf"train +to train +{re.escape(str(run.folder))}", text)
    assert re.search(r"cost: about \d+ steps of 4 narratives; then \d+ are written", text)


def test_every_command_is_listed_and_has_a_module():
    modules = {path.stem for path in (REPOSITORY / "regen/commands").glob("*.py")} - {"__init__", "grid"}
    assert set(COMMANDS) == modules
    assert all(callable(importlib.import_module(f"regen.commands.{name}").run) for name in COMMANDS)


def test_the_docs_list_the_rooms_that_there_are():
    text = next(part for part in (REPOSITORY / "docs/structure.md").read_text().split("```") if "\nregen/\n" in part)
    listed = set(re.findall(r"^  ([\w.]+?)/? ", text, re.MULTILINE))
    there = {
        path.name for path in (REPOSITORY / "regen").iterdir() if not path.name.startswith("_") and path.name != "conf"
    }
    assert listed == there
