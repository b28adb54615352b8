"""`regen serve checkpoint=FOLDER`: serves a model over HTTP."""

from regen.config.command_line import main
from regen.config.schema import ServeConfig


@main("serve")
def run(config: ServeConfig) -> None:
    from regen.runtime.device import encoding_on

    try:
        from regen.serving.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}. The service needs an extra: pip install 'regen[serve]'") from error
    with encoding_on(config.device):
        serve(config)
