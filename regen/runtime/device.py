"""Chooses the device of a model after training, and helpers for GPUs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

logger = logging.getLogger(__name__)
ON_CUDA = ("gpu", "cuda")  # values of trainer.accelerator for a GPU
_encoding = ["auto"]  # accelerators of sentence encoders, the current one last; of the process, not of a thread


def device_of(accelerator: str) -> torch.device:
    """The device for an accelerator. Lightning itself places the model for training.

    Args:
        accelerator: `cpu`, `gpu`, `cuda` or `auto`. Without a GPU the device is the CPU, with a warning if a GPU was
            asked for.
    """
    if torch.cuda.is_available() and accelerator in (*ON_CUDA, "auto"):
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator in ON_CUDA:
        logger.warning("This machine has no CUDA device: computing on the CPU in float32.")
    return torch.device("cpu")


@contextmanager
def encoding_on(accelerator: str) -> Iterator[None]:
    """Makes sentence encoders compute on the device for this accelerator inside the block."""
    _encoding.append(accelerator)
    try:
        yield
    finally:
        _encoding.pop()


def encoding_device() -> torch.device:
    """The device of sentence encoders: a GPU if there is one, unless `encoding_on` says another."""
    return device_of(_encoding[-1])


def described(device: torch.device) -> str:
    """Name of the device for records, with the GPU's model."""
    return f"{device.type} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def waiting_for(device: torch.device) -> Callable[[], None]:
    """Returns a function that waits until the device has finished its work."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def share_gpus(job: int) -> None:
    """Selects a GPU of this machine for a job of a grid, by the job's number."""
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(job % torch.cuda.device_count())


def free_memory() -> None:
    """Frees GPU memory that PyTorch still caches after a run."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def out_of_memory_named(asked: str, fix: str) -> Iterator[None]:
    """Turns PyTorch's out-of-memory error into a `ValueError`.

    Args:
        asked: What was computed (batch, positions, LM), for the message.
        fix: Settings that need less memory, for the message.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"Out of memory: {asked}. {fix}") from error
