"""The W&B dashboard of a project: `python -m regen.dashboard project=NAME`."""

from omegaconf import DictConfig

from regen.cli import main


@main("dashboard")
def run(cfg: DictConfig) -> None:
    from regen.pipeline import plain
    from regen.training.wandb_dashboard import Dashboard, save_dashboard, workspace_spec

    options = plain(cfg)
    dry_run = options.pop("dry_run")
    dashboard = Dashboard(**options)
    print(workspace_spec(dashboard) if dry_run else save_dashboard(dashboard))  # noqa: T201


if __name__ == "__main__":
    run()
