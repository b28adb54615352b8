"""Builds the narrator and the raters of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regen.config import schema
from regen.narratives.endpoint import Endpoint, Price, Sampling
from regen.narratives.narrators import Narrator, OpenAINarrator, TemplateNarrator
from regen.narratives.prompts import HistoryLimits
from regen.narratives.raters import Rater
from regen.narratives.report import RunLimits
from regen.runtime.shards import HERE


def build_narrator(config: schema.NarratedConfig) -> Narrator:
    """Builds the narrator of a config.

    Raises:
        ValueError: If there is no such narrator, or its endpoint cannot be used.
    """
    name = config.narrator.name
    if name == "template":
        return TemplateNarrator()
    if name == "openai":
        parts = endpoint_parts(config.narrator, max_cost=config.max_cost, where="narrator")
        engine = getattr(config, "engine", None)  # only some commands have it
        return OpenAINarrator(**parts, engine=HERE if engine is None else engine.build())
    raise ValueError(f"narrator={name} writes no narratives. Choose template or openai.")


def build_raters(raters: Mapping[str, schema.Endpoint], *, max_cost: float | None) -> list[Rater]:
    """Builds the raters of a config."""
    return [
        Rater(name, **endpoint_parts(settings, max_cost=max_cost, where=f"rater.{name}"))
        for name, settings in raters.items()
    ]


def endpoint_parts(settings: schema.Endpoint, *, max_cost: float | None, where: str) -> dict[str, Any]:
    """Keyword arguments of `OpenAINarrator` and `Rater` from a `narrator` or `rater` node.

    Raises:
        ValueError: If a setting is invalid; the message starts with `where`.
    """
    prompt, completion = settings.price.prompt, settings.price.completion
    if (prompt is None) != (completion is None):
        raise ValueError(f"{where}.price needs both prompt and completion, in dollars per million tokens.")
    try:
        return {
            "endpoint": Endpoint(
                model=settings.model,
                base_url=settings.base_url,
                api_key_env=settings.api_key_env,
                timeout=settings.timeout,
                sampling=Sampling(settings.temperature, settings.top_p, settings.max_tokens, settings.seed),
            ),
            "ledger": Path(settings.ledger),
            "request_limits": HistoryLimits(settings.text_characters, settings.history_characters),
            "run_limits": RunLimits(
                concurrency=settings.concurrency,
                requests_per_minute=settings.requests_per_minute,
                tokens_per_minute=settings.tokens_per_minute,
                max_attempts=settings.max_attempts,
                price=None if prompt is None or completion is None else Price(prompt, completion),
                max_cost=max_cost,
            ),
        }
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
