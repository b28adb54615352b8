"""Names under which runs log to Weights & Biases; the dashboard reads them."""

NARRATIVES = "narratives"  # the table of predictions and references
STEP = "trainer/global_step"


def metric_name(feature: str, metric: str, system: str = "model") -> str:
    """`test/<feature>/<metric>`, followed by the name of a floor."""
    return f"test/{feature}/{metric}" + ("" if system == "model" else f"/{system}")


def bound_names(name: str) -> tuple[str, str]:
    """Names of the lower and upper bound of an interval."""
    return f"{name}/low", f"{name}/high"
