"""Where a model computes: the one place that decides it, for training and for everything after it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

logger = logging.getLogger(__name__)
ON_CUDA = ("gpu", "cuda")  # what `trainer.accelerator` calls it


def device_of(accelerator: str) -> torch.device:
    """The device of everything but training itself, for which Lightning moves the model.

    Args:
        accelerator: `cpu`, `gpu` or `cuda`, or `auto` for CUDA where there is any. A run that was trained on a GPU can
            be used on a machine without one: it then computes on the CPU, which is logged.
    """
    if torch.cuda.is_available() and accelerator in (*ON_CUDA, "auto"):
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator in ON_CUDA:
        logger.warning("This machine has no CUDA device: computing on the CPU in float32.")
    return torch.device("cpu")


def described(device: torch.device) -> str:
    """The device for a record, with the name of the card."""
    return f"{device.type} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def waiting_for(device: torch.device) -> Callable[[], None]:
    """Call the result to wait until the device has done what it was told; a CPU has by then."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def share_gpus(job: int) -> None:
    """Gives this job of a grid a GPU of this machine, by its number."""
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(job % torch.cuda.device_count())


def free_memory() -> None:
    """Gives back what a cell that is over still holds on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def out_of_memory_named(asked: str, fix: str) -> Iterator[None]:
    """Turns running out of memory inside into a message.

    Args:
        asked: What was to be computed: batch, positions, LM.
        fix: Settings that need less.

    Raises:
        ValueError: Instead of PyTorch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"Out of memory: {asked}. {fix}") from error
