"""`regen narrate source=amazon2018 narrator=template`: runs the stages up to `narrate`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from regen.config.command_line import main
from regen.config.schema import NarrateConfig, NarratedConfig

if TYPE_CHECKING:
    from regen.narratives.narrators import OpenAINarrator


@main("narrate")
def run(config: NarrateConfig) -> None:
    from regen.commands.prepare import counts_table
    from regen.narratives.choices import build_narrator
    from regen.narratives.narrators import OpenAINarrator
    from regen.pipeline import data_artefact

    narrator = build_narrator(config)
    if config.dry_run:
        if not isinstance(narrator, OpenAINarrator):
            raise ValueError(f"dry_run=true: narrator={config.narrator.name} asks no endpoint and costs nothing.")
        print(estimate_table(estimate_of(narrator, config)))  # noqa: T201
        return
    artefact = data_artefact(config, force=config.force)
    print(counts_table(artefact.manifest["counts"]))  # noqa: T201
    print(f"\n{artefact.path}")  # noqa: T201


def estimate_of(narrator: "OpenAINarrator", config: NarratedConfig) -> Mapping[str, float | int | None]:
    """Requests that a narrator would send for the data of a config, and their cost."""
    from regen.narratives.narrate import estimate, work_of
    from regen.pipeline import prepared_artefact

    about = config.narrator
    work = work_of(
        prepared_artefact(config),
        max_history=about.max_history,
        users=about.users,
        shared_category=about.shared_category,
    )
    requests = narrator.requests(work)
    return estimate(requests, endpoint=narrator.endpoint, ledger=narrator.ledger, limits=narrator.run_limits)


def estimate_table(numbers: Mapping[str, float | int | None]) -> str:
    """Requests, tokens and dollars, one per line."""
    counts = dict(numbers)
    dollars = counts.pop("dollars_at_most")
    lines = [f"{name.replace('_', ' '):26} {number:>14,}" for name, number in counts.items()]
    price = "set price.prompt and price.completion" if dollars is None else f"${dollars:,.4f}"
    return "\n".join([*lines, f"{'cost at most':26} {price:>14}"])
