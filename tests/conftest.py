"""Shapes in signatures are checked while tests run; fixtures that several rooms share."""

import logging
import os
from copy import deepcopy
from functools import cache
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
SHAPED = ["regen.models", "regen.embeddings", "regen.data.batch", "regen.data.datamodule", "regen.training.module"]
SHAPED += [
    "regen.evaluation.text_metrics",
    "regen.evaluation.similarity",
    "regen.evaluation.identification",
    "regen.evaluation.statistics",
    "regen.evaluation.ranking",
    "regen.data.next_item",
]
SHAPED += [f"regen.generation.{name}" for name in ("row_decoder", "native_decoder", "lm_check", "merged_lm")]
SHAPED += ["regen.runtime.packed_weights", "regen.runtime.narrow_weights"]
install_import_hook(SHAPED, "beartype.beartype")  # the rooms whose signatures carry shapes

import sys  # noqa: E402

import pytest  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from small import SMALL, quick_embeddings  # noqa: E402

# Hydra shuts all handlers down, and that of absl (behind rouge-score) would close the stream that pytest captures.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_lm():  # type: ignore[no-untyped-def]
    from regen.models.language_model import load_tiny

    return load_tiny("tiny", width=32, layers=2, heads=2, seed=0)


@cache
def composed_once(overrides: tuple[str, ...]):  # type: ignore[no-untyped-def]
    """What Hydra composes of `train`; many tests ask for the same."""
    from hydra import compose, initialize_config_dir

    from regen.config.registration import register
    from regen.config.schema import CONF

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture
def small_config(tmp_path):  # type: ignore[no-untyped-def]
    """Composes `train` with a world and an LM that train in a second, below the test's own folder."""
    from regen.config.objects import typed

    small = [*SMALL, "encoder=cf", "trainer.accelerator=cpu"]

    def composed(*overrides: str, without: str = "nothing"):  # type: ignore[no-untyped-def]
        places = {"paths.data_dir": f"{tmp_path}/data", "paths.runs_dir": f"{tmp_path}/runs"}
        places |= dict(option.split("=", 1) for option in overrides if option.startswith(tuple(places)))
        kept = [option for option in small if not option.startswith(without)]
        kept += [option for option in overrides if not option.startswith(tuple(places))]
        cfg = deepcopy(composed_once(tuple(kept)))
        for place, folder in places.items():
            OmegaConf.update(cfg, place, folder)
        return typed(cfg)

    return composed


@pytest.fixture
def logs_as_they_were():  # type: ignore[no-untyped-def]
    """Hydra takes the root logger over."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level = before


@pytest.fixture
def no_sentence_encoder():  # type: ignore[no-untyped-def]
    """What the test embeds goes through a stand-in, see `small`."""
    with quick_embeddings():
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; it is not part of the repository."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data: {REAL_DATA} is absent")
    return REAL_DATA
