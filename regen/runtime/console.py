"""Silences messages of libraries on the console."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHATTY = ("lightning.pytorch", "lightning.fabric", "httpx", "sentence_transformers")


def quiet_libraries() -> None:
    """Silences messages of libraries that a user of the commands cannot act on."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for an optional CPU kernel
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches .* is smaller than the logging.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # checkpoints of a resumed run
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # a deprecated call in lightning


@contextmanager
def without_loading_bar(pretrained: str) -> Iterator[None]:
    """Hides the progress bar of loading weights from a folder; downloads from the hub keep theirs."""
    from transformers.utils import logging as transformers_logging

    hide = Path(pretrained).is_dir() and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()
