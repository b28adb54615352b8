"""Fills the configuration page of the documentation site from the typed schema; a hook of mkdocs."""

from typing import Any

from regen.config.objects import compose, plain
from regen.config.ranges import ranges
from regen.config.registration import groups_help
from regen.config.schema import Settings

CHOSEN = ("source", "cf", "content", "encoder", "adapter", "lm", "tuning", "feature", "vertical")  # whole nodes by name


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts tables in the place of `{{ groups }}` and `{{ settings }}`."""
    if "{{ groups }}" not in markdown:
        return markdown
    return markdown.replace("{{ groups }}", _groups()).replace("{{ settings }}", _settings())


def _groups() -> str:
    rows = [line.strip().split(": ", 1) for line in groups_help().splitlines()]
    return "\n".join(
        ["| group | values |", "|---|---|", *(f"| `{name}` | {_coded(values)} |" for name, values in rows)]
    )


def _coded(values: str) -> str:
    return ", ".join(f"`{value}`" for value in values.split(", "))


def _settings() -> str:
    lines = ["| key | default | range | meaning |", "|---|---|---|---|"]

    def walk(prefix: str, node: Settings) -> None:
        known = ranges(type(node))
        for name, value in vars(node).items():
            key = f"{prefix}{name}"
            if isinstance(value, Settings):
                walk(f"{key}.", value)
            elif not isinstance(value, dict | list | tuple) and not hasattr(value, "node"):
                limits = known.get(name)
                shown = "" if limits is None else str(limits).replace("|", "\\|")
                lines.append(f"| `{key}` | `{plain(value)}` | {shown} | {'' if limits is None else limits.unit} |")

    walk("", compose([]))
    return "\n".join(lines)
