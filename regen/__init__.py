"""Narratives in conversational recommendation, as a library.

config = regen.compose(["encoder=both", "adapter=linear"])
data, module = regen.build(config)
lightning.Trainer(max_epochs=1).fit(module, data)
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "FusedSequences": "regen.data.sequences",
    "NarrativeDataModule": "regen.data.datamodule",
    "NarrativeModel": "regen.serving",
    "NarrativeModule": "regen.training.module",
    "Recommender": "regen.serving.recommender",
    "build": "regen.pipeline",
    "compose": "regen.config.objects",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, because every command imports this package and torch is slow to import."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
