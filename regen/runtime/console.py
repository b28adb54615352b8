"""Keeps the console to what a user of regen's commands can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHATTY = ("lightning.pytorch", "lightning.fabric", "httpx", "sentence_transformers")


def quiet_libraries() -> None:
    """Silences messages of libraries that ask for nothing a user of a command could do."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a kernel of its own that a CPU could have
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches .* is smaller than the logging.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run's own checkpoints
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # lightning's call into torch


@contextmanager
def without_loading_bar(pretrained: str) -> Iterator[None]:
    """Hides the bar of weights that are read from a folder in a second; a download from the hub keeps its bars."""
    from transformers.utils import logging as transformers_logging

    hide = Path(pretrained).is_dir() and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()
