"""`regen dashboard project=NAME`: makes the W&B dashboard of a project."""

from regen.config.command_line import main
from regen.config.schema import DashboardConfig


@main("dashboard")
def run(config: DashboardConfig) -> None:
    from regen.analysis.wandb_dashboard import check, save_dashboard, workspace_spec

    check(config)
    print(workspace_spec(config) if config.dry_run else save_dashboard(config))  # noqa: T201
