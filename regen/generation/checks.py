"""Checks of the generation settings, before training and before generating."""

from collections.abc import Mapping
from typing import Any

from regen.config.objects import Component
from regen.config.schema import Evaluation
from regen.data.tables import nearest

GREEDY = {"max_new_tokens", "do_sample"}  # options that greedy decoding may set


def check_decoding(evaluation: Evaluation, engine: Component) -> None:
    """Checks that a server can do what the settings ask for.

    Raises:
        ValueError: If not; names the settings that conflict.
    """
    if evaluation.endpoint is None:
        return
    at = f"evaluation.endpoint={evaluation.endpoint}"
    if engine.target == "regen.runtime.shards.RayEngine":
        raise ValueError(f"{at} and engine=ray exclude each other. Leave one out.")
    check_precision(evaluation.precision, setting="evaluation.precision", server=at)
    asked = evaluation.generation
    if others := sorted(asked.keys() - GREEDY) + (["do_sample"] if asked.get("do_sample") else []):
        raise ValueError(
            f"{at} decodes greedily, and evaluation.generation asks for {', '.join(sorted(others))}. Leave one out."
        )


def check_precision(precision: str | None, *, setting: str, server: str) -> None:
    """Checks that no precision is set together with a server, which has its own weights.

    Raises:
        ValueError: If both are set.
    """
    if precision is not None:
        raise ValueError(
            f"{server} decodes with its own weights, which {setting}={precision} cannot change. Leave one of them out."
        )


def check_option_names(options: Mapping[str, Any]) -> None:
    """Checks that transformers' `GenerationConfig` has these options.

    Raises:
        ValueError: If not; names the most similar option.
    """
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict()
    for name in options:
        if name not in known:
            hint = nearest(name, sorted(known)).partition("Known:")[0]
            raise ValueError(
                f"evaluation.generation.{name}: transformers' GenerationConfig has no such option. {hint}".rstrip()
            )
