"""Stage `narrate` alone: `regen narrate source=amazon2018 vertical=gift_cards narrator=template`."""

from collections.abc import Mapping

from regen.config.command_line import main
from regen.config.schema import NarrateConfig


@main("narrate")
def run(config: NarrateConfig) -> None:
    from regen.commands.prepare import counts_table
    from regen.narratives.choices import build_narrator
    from regen.narratives.narrate import OpenAINarrator, estimate, histories_of
    from regen.pipeline import data_artefact, prepared_artefact

    narrator = build_narrator(config)
    if config.dry_run:
        if not isinstance(narrator, OpenAINarrator):
            raise ValueError(f"dry_run=true: narrator={config.narrator.name} asks nobody and costs nothing.")
        histories, _ = histories_of(
            prepared_artefact(config), max_history=config.narrator.max_history, users=config.narrator.users
        )
        requests = narrator.requests(histories)
        print(  # noqa: T201
            estimate_table(
                estimate(requests, endpoint=narrator.endpoint, ledger=narrator.ledger, limits=narrator.run_limits)
            )
        )
        return
    artefact = data_artefact(config, force=config.force)
    print(counts_table(artefact.manifest["counts"]))  # noqa: T201
    print(f"\n{artefact.path}")  # noqa: T201


def estimate_table(numbers: Mapping[str, float | int | None]) -> str:
    """Requests, tokens and dollars, one a line."""
    dollars = numbers["dollars_at_most"]
    lines = [
        f"{name.replace('_', ' '):26} {number:>14,}" for name, number in numbers.items() if name != "dollars_at_most"
    ]
    price = "set price.prompt and price.completion" if dollars is None else f"${dollars:,.4f}"
    return "\n".join([*lines, f"{'cost at most':26} {price:>14}"])
