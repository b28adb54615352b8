"""What cannot be generated as it is asked for: refused before training, and again by whoever generates."""

from collections.abc import Mapping
from typing import Any

from regen.config.objects import Component
from regen.config.schema import Evaluation
from regen.data.tables import nearest

GREEDY = {"max_new_tokens", "do_sample"}  # options with which text is still the likeliest


def check_decoding(evaluation: Evaluation, engine: Component) -> None:
    """Refuses a server that is to do what a server cannot.

    Raises:
        ValueError: Names the settings, of which one has to go.
    """
    if evaluation.endpoint is None:
        return
    at = f"evaluation.endpoint={evaluation.endpoint}"
    if engine.target == "regen.runtime.shards.RayEngine":
        raise ValueError(f"{at} and engine=ray would both generate. Leave one out.")
    check_precision(evaluation.precision, setting="evaluation.precision", server=at)
    asked = evaluation.generation
    if others := sorted(asked.keys() - GREEDY) + (["do_sample"] if asked.get("do_sample") else []):
        raise ValueError(
            f"{at} decodes greedily, and evaluation.generation asks for {', '.join(sorted(others))}. Leave one out."
        )


def check_precision(precision: str | None, *, setting: str, server: str) -> None:
    """A server's weights are its own: none may be set beside it.

    Raises:
        ValueError: If one is.
    """
    if precision is not None:
        raise ValueError(
            f"{server} decodes with its own weights, which {setting}={precision} does not reach. Leave one of them out."
        )


def check_option_names(options: Mapping[str, Any]) -> None:
    """Refuses options that transformers' `GenerationConfig` does not have.

    Raises:
        ValueError: Names the nearest right one.
    """
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict()
    for name in options:
        if name not in known:
            hint = nearest(name, sorted(known)).partition("Known:")[0]
            raise ValueError(
                f"evaluation.generation.{name}: transformers' GenerationConfig has no such option. {hint}".rstrip()
            )
