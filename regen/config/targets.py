"""Checks the classes that `_target_` names."""

import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any


def check_target(target: str) -> None:
    """Checks that a `_target_` can be imported.

    Raises:
        ValueError: If it cannot.
    """
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"_target_={target} cannot be loaded: {error}. Install its package, for example by pip install -e FOLDER, "
            "or put the folder that contains the package on PYTHONPATH."
        ) from error


def foreign_targets(values: Any) -> Iterator[str]:
    """Every `_target_` in a config's plain values that is not part of `regen`."""
    if isinstance(values, Mapping):
        target = str(values.get("_target_", "regen."))
        if not target.startswith("regen."):
            yield target
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from foreign_targets(value)
