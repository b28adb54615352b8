"""`regen prepare source=xrec`: runs only the stage `prepare`; prints what was kept and dropped, and why."""

from collections.abc import Mapping

from regen.config.command_line import main
from regen.config.schema import PrepareConfig


@main("prepare")
def run(config: PrepareConfig) -> None:
    from regen.pipeline import prepared_artefact

    artefact = prepared_artefact(config, force=config.force)
    print(counts_table(artefact.manifest["counts"]))  # noqa: T201
    print(f"\n{artefact.path}")  # noqa: T201


def counts_table(counts: Mapping[str, int]) -> str:
    """Counts of a prepared artefact as text: for each table rows read, dropped by reason, and kept."""
    lines = []
    for table in dict.fromkeys(name.partition(".")[0] for name in counts):
        dropped = {name: count for name, count in counts.items() if name.startswith(f"{table}.dropped.") and count}
        read = counts.get(f"{table}.read", counts.get(table, 0))
        kept = counts.get(f"{table}.kept", read - sum(dropped.values()))
        if table in counts or f"{table}.read" in counts:
            lines.append((table, "read", read))
            lines += [("", f"dropped: {_words(name, 2)}", -count) for name, count in dropped.items()]
            lines.append(("", "kept", kept))
        else:
            lines.append((table, "", sum(count for name, count in counts.items() if name == f"{table}.{table}")))
        noted = [
            name for name in counts if name.startswith(f"{table}.") and name.split(".")[1] not in (*_OUTLINE, table)
        ]
        lines += [("", f"noted: {_words(name, 1)}", counts[name]) for name in noted if counts[name]]
    width = max(len(what) for _, what, _ in lines)
    return "\n".join(f"{table:14}{what:{width}}  {count:>13,}" for table, what, count in lines)


_OUTLINE = ("read", "kept", "dropped")


def _words(name: str, levels: int) -> str:
    return name.split(".", levels)[levels].replace("_", " ")
