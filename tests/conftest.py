"""Shapes in signatures are checked while tests run; fixtures that several rooms share."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
install_import_hook("regen", "beartype.beartype")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_lm():  # type: ignore[no-untyped-def]
    from regen.models.language_model import load_tiny

    return load_tiny("tiny", width=32, layers=2, heads=2, seed=0)
