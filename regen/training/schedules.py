"""Learning-rate schedules with a linear warm-up."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regen.config.objects import Component

_NUMBER_OF_STEPS = ("steps", "total_steps", "num_training_steps", "T_max")  # names of the parameter


def linear(optimizer: Optimizer, *, steps: int, warmup_share: float = 0.05) -> LambdaLR:
    """Linear decay from the peak to zero.

    Args:
        optimizer: The optimizer, with the peak learning rates.
        steps: Number of steps of the run.
        warmup_share: Share of warm-up steps.
    """
    return _after_warmup(optimizer, steps, warmup_share, lambda left: left)


def cosine(optimizer: Optimizer, *, steps: int, warmup_share: float = 0.05) -> LambdaLR:
    """Cosine decay from the peak to zero. The arguments are those of `linear`."""
    return _after_warmup(optimizer, steps, warmup_share, lambda left: 0.5 - 0.5 * math.cos(math.pi * left))


def constant(optimizer: Optimizer, *, steps: int, warmup_share: float = 0.05) -> LambdaLR:
    """Constant at the peak. The arguments are those of `linear`."""
    return _after_warmup(optimizer, steps, warmup_share, lambda left: 1.0)


def schedule_of(node: Component) -> Callable[[Optimizer, int], Any]:
    """Returns a function that makes a run's schedule from its optimizer and number of steps.

    A class of your own gets the number of steps if it has a parameter `steps`, `total_steps`, `num_training_steps` or
    `T_max` that the config does not set.
    """
    return partial(_build, node)


def _build(node: Component, optimizer: Optimizer, steps: int) -> Any:
    from hydra.utils import get_object

    parameters = inspect.signature(get_object(node.target)).parameters
    counted = [name for name in _NUMBER_OF_STEPS if name in parameters and name not in node.options]
    return node.build(optimizer, **dict.fromkeys(counted, steps))


def _after_warmup(optimizer: Optimizer, steps: int, warmup_share: float, of_peak: Callable[[float], float]) -> LambdaLR:
    """Schedule whose factor after the warm-up is `of_peak(share of the steps that are left)`."""
    warmup = max(1, round(warmup_share * steps))

    def share(step: int) -> float:
        left = (steps - step) / max(1, steps - warmup)
        return min((step + 1) / warmup, 1.0, of_peak(max(0.0, min(1.0, left))))

    return LambdaLR(optimizer, share)
