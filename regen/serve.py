"""Narratives over HTTP: `python -m regen.serve checkpoint=FOLDER`."""

from omegaconf import DictConfig

from regen.cli import main


@main("serve")
def run(cfg: DictConfig) -> None:
    try:
        from regen.serving.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}. The service needs an extra: pip install 'regen[serve]'") from error
    serve(cfg)


if __name__ == "__main__":
    run()
