"""How both learning rates move: they rise over the first steps, then fall or stay."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regen.config.objects import Component

_NUMBER_OF_STEPS = ("steps", "total_steps", "num_training_steps", "T_max")  # what classes call it


def linear(optimizer: Optimizer, *, steps: int, warmup_share: float = 0.05) -> LambdaLR:
    """From the peak to zero in a straight line.

    Args:
        optimizer: Its rates are the peaks.
        steps: Of the whole run.
        warmup_share: Share of the steps in which the rates rise.
    """
    return _after_warmup(optimizer, steps, warmup_share, lambda left: left)


def cosine(optimizer: Optimizer, *, steps: int, warmup_share: float = 0.05) -> LambdaLR:
    """From the peak to zero along half a cosine; the arguments are those of `linear`."""
    return _after_warmup(optimizer, steps, warmup_share, lambda left: 0.5 - 0.5 * math.cos(math.pi * left))


def constant(optimizer: Optimizer, *, steps: int, warmup_share: float = 0.05) -> LambdaLR:
    """At the peak; the arguments are those of `linear`."""
    return _after_warmup(optimizer, steps, warmup_share, lambda left: 1.0)


def schedule_of(node: Component) -> Callable[[Optimizer, int], Any]:
    """What makes a run's schedule from its optimizer and its number of steps.

    A class of the user's own gets the number of steps if one of its parameters is named `steps`, `total_steps`,
    `num_training_steps` or `T_max` and the config does not set it.
    """
    return partial(_build, node)


def _build(node: Component, optimizer: Optimizer, steps: int) -> Any:
    from hydra.utils import get_object

    parameters = inspect.signature(get_object(node.target)).parameters
    counted = [name for name in _NUMBER_OF_STEPS if name in parameters and name not in node.options]
    return node.build(optimizer, **dict.fromkeys(counted, steps))


def _after_warmup(optimizer: Optimizer, steps: int, warmup_share: float, of_peak: Callable[[float], float]) -> LambdaLR:
    """`of_peak` gives the share of the peak from the share of the steps after the warm-up that are left."""
    warmup = max(1, round(warmup_share * steps))

    def share(step: int) -> float:
        left = (steps - step) / max(1, steps - warmup)
        return min((step + 1) / warmup, 1.0, of_peak(max(0.0, min(1.0, left))))

    return LambdaLR(optimizer, share)
