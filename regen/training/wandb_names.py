"""The names that runs log under and the dashboard shows."""

NARRATIVES = "narratives"  # table of predictions beside references
STEP = "trainer/global_step"


def metric_name(feature: str, metric: str, system: str = "model") -> str:
    """`test/<feature>/<metric>` as the tables name it; a floor's name beneath it."""
    return f"test/{feature}/{metric}" + ("" if system == "model" else f"/{system}")


def bound_names(name: str) -> tuple[str, str]:
    """Names of an interval's lower and upper bound."""
    return f"{name}/low", f"{name}/high"
