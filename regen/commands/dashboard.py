"""The W&B dashboard of a project: `regen dashboard project=NAME`."""

from regen.config.command_line import main
from regen.config.schema import DashboardConfig


@main("dashboard")
def run(config: DashboardConfig) -> None:
    from regen.analysis.wandb_dashboard import Dashboard, save_dashboard, workspace_spec

    dashboard = Dashboard(
        project=config.project,
        entity=config.entity,
        name=config.name,
        features=config.features,
        metrics=config.metrics,
        by=config.by,
        group=config.group,
    )
    print(workspace_spec(dashboard) if config.dry_run else save_dashboard(dashboard))  # noqa: T201
