"""The W&B dashboard of a project: scores of a grid, learning curves and narratives."""

import warnings
from typing import Any

from regen.config.schema import DashboardConfig
from regen.evaluation.text_metrics import METRICS
from regen.training.wandb_names import NARRATIVES, STEP, bound_names, metric_name

__all__ = ["check", "save_dashboard", "workspace_spec"]

FLOORS = ("shuffled", "constant")
SYSTEM = {
    "CPU (%)": ("system/cpu",),
    "Memory (%)": ("system/memory_percent", "system/proc.memory.percent"),
    "First GPU (%)": ("system/gpu.0.gpu", "system/gpu.0.memoryAllocated"),
}


def check(dashboard: DashboardConfig) -> None:
    """Checks the features and metrics of a dashboard.

    Raises:
        ValueError: If it has no feature or no metric, or an unknown metric.
    """
    for metric in dashboard.metrics:
        if metric not in METRICS:
            raise ValueError(f"metrics={metric}: no such row in the tables; they have {', '.join(METRICS)}.")
    if not (dashboard.features and dashboard.metrics):
        raise ValueError("a dashboard needs at least one of features and one of metrics.")


def workspace_spec(dashboard: DashboardConfig) -> str:
    """The dashboard as JSON, without network or login."""
    return str(_workspace(dashboard)._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2))


def save_dashboard(dashboard: DashboardConfig) -> str:
    """Creates the view, and the project if it does not exist.

    Returns:
        The URL of the view.

    Raises:
        ValueError: If there is no login, or W&B refuses or cannot be reached.
    """
    _library()
    import wandb

    try:
        api = wandb.Api()
        entity = dashboard.entity or api.default_entity
        if entity is None:
            raise ValueError("this login has no default entity. Give entity=NAME, the name of a user or team.")
        if all(project.name != dashboard.project for project in api.projects(entity)):
            api.create_project(dashboard.project, entity)
        return str(_workspace(dashboard, entity).save().url)
    except wandb.Error as error:
        raise ValueError(
            f"W&B: {error} The dashboard needs a login: run `wandb login`, or set $WANDB_API_KEY. "
            "dry_run=true shows it without one."
        ) from error


def _library() -> tuple[Any, Any]:
    """The modules `workspaces` and `panels` of wandb-workspaces; importing them raises warnings about pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import wandb_workspaces.reports.v2 as panels
            import wandb_workspaces.workspaces as workspaces
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}. The dashboard needs an extra: pip install 'regen[wandb]'") from error
    return workspaces, panels


def _workspace(dashboard: DashboardConfig, entity: str | None = None) -> Any:
    ws, _ = _library()
    names = [metric_name(feature, metric) for feature in dashboard.features for metric in dashboard.metrics]
    columns = [f"summary:{column}" for name in names for column in (name, *bound_names(name))]
    group = dashboard.group
    return ws.Workspace(
        entity=entity or dashboard.entity or "",
        project=dashboard.project,
        name=dashboard.name,
        sections=[
            *(section for feature in dashboard.features for section in _of_feature(dashboard, feature)),
            _learning_curves(dashboard),
            _narratives(),
            _system(),
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["run:displayName", "tags:__ALL__", *columns],
            filters="" if group is None else ws.And(ws.Metric("Group") == group),
        ),
    )


def _of_feature(dashboard: DashboardConfig, feature: str) -> list[Any]:
    """A section of metrics, and one of metrics with their floors."""
    ws, wr = _library()
    pooled = _pooled(dashboard)
    metrics, controls = [], []
    for metric in dashboard.metrics:
        name, title = metric_name(feature, metric), METRICS[metric].display
        metrics.append(wr.BarPlot(title=title, metrics=[name], **pooled))
        floors = [metric_name(feature, metric, floor) for floor in FLOORS]
        controls.append(wr.BarPlot(title=f"{title} and its floors", metrics=[name, *floors], **pooled))
    return [
        ws.Section(name=f"Metrics: {feature}", panels=metrics, is_open=True),
        ws.Section(name=f"Controls: {feature}", panels=controls, is_open=True),
    ]


def _learning_curves(dashboard: DashboardConfig) -> Any:
    ws, wr = _library()
    pooled = _pooled(dashboard)
    panels = [
        wr.LinePlot(title="Validation loss", x=STEP, y=["val_loss"], **pooled),
        wr.LinePlot(title="Training loss", x=STEP, y=["train_loss"], **pooled),
        wr.LinePlot(title="Learning rates", x=STEP, metric_regex="^lr-.*", **pooled),
    ]
    return ws.Section(name="Learning curves", panels=panels, is_open=True)


def _narratives() -> Any:
    ws, wr = _library()
    table = wr.WeavePanelSummaryTable(table_name=NARRATIVES, layout=wr.Layout(w=24, h=12))
    layout = ws.SectionLayoutSettings(columns=1, rows=1)
    return ws.Section(name="Narratives", panels=[table], is_open=True, layout_settings=layout)


def _system() -> Any:
    ws, wr = _library()
    panels = [wr.LinePlot(title=title, x="RelativeTime(Process)", y=list(names)) for title, names in SYSTEM.items()]
    return ws.Section(name="System", panels=panels)


def _pooled(dashboard: DashboardConfig) -> dict[str, Any]:
    """One bar or line per value of the setting: the mean of its runs, with the range from minimum to maximum."""
    _, wr = _library()
    return {"groupby": wr.Config(dashboard.by), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
