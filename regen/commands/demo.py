"""`regen demo runs=outputs/runs`: serves a web page that compares the models of a grid."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import DemoConfig


@main("demo")
def run(config: DemoConfig) -> None:
    from regen.runtime.device import encoding_on

    try:
        from regen.serving.demo.serve import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}. The demo needs an extra: pip install 'regen[serve]'") from error

    def ready(address: str) -> None:
        print(f"Open {address} (Ctrl-C ends it).", flush=True)  # noqa: T201

    with encoding_on(config.device):
        serve(Path(config.runs), device=str(config.device), host=config.host, port=config.port, ready=ready)
