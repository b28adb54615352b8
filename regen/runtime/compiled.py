"""`torch.compile` for the decoder layers of a language model."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def compiled_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Compiles each layer inside the block.

    The layers of a decoder share one graph, which holds for every length of a batch. So the first step compiles once,
    which takes about a minute.
    """
    compiled = list(layers)
    for layer in compiled:
        layer.compile(dynamic=True)
    try:
        with warnings.catch_warnings():  # raised by torch.compile itself
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        for layer in compiled:
            layer._compiled_call_impl = None  # PyTorch has no public way back
