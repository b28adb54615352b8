"""Narratives over HTTP: `regen serve checkpoint=FOLDER`."""

from omegaconf import DictConfig

from regen.config.command_line import main


@main("serve")
def run(cfg: DictConfig) -> None:
    try:
        from regen.serving.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}. The service needs an extra: pip install 'regen[serve]'") from error
    serve(cfg)
