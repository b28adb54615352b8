"""The W&B dashboard of a project: `regen dashboard project=NAME`."""

from omegaconf import DictConfig

from regen.config.command_line import main


@main("dashboard")
def run(cfg: DictConfig) -> None:
    from regen.analysis.wandb_dashboard import Dashboard, save_dashboard, workspace_spec
    from regen.pipeline import plain

    options = plain(cfg)
    dry_run = options.pop("dry_run")
    dashboard = Dashboard(**options)
    print(workspace_spec(dashboard) if dry_run else save_dashboard(dashboard))  # noqa: T201
