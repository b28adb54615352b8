"""Loads the runs of a demo and serves its page."""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from regen.config.objects import read_run_config
from regen.data.prepare import load_tables
from regen.generation.vllm_client import is_loopback
from regen.pipeline import opened_run
from regen.runtime.device import device_of
from regen.serving import NarrativeModel
from regen.serving.connection import Connection
from regen.serving.demo.app import Shown, build_app, withholds_review
from regen.serving.demo.conversation import build_conversation_app
from regen.serving.demo.narrated_users import NarratedUsers
from regen.serving.demo.runs import newest_grid
from regen.serving.gate import LOOPBACK
from regen.serving.recommender import Recommender


def serve(runs: Path, *, device: str = "auto", host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves the page until it is interrupted.

    Args:
        runs: Folder of runs or of a grid, or of one run of `task=converse`.
        device: `auto`, `cpu` or `cuda`.
        host: A loopback address, because the page has no key.
        port: Port to listen on; 0 takes a free one.
        ready: Called with the page's address when models and data are loaded.

    Raises:
        FileNotFoundError: If the folder holds no runs.
        ValueError: If the address is not loopback, the port is taken, or the runs cannot be shown.
    """
    with _listening(host, port) as listening:  # before the models load, to fail early
        app = load_app(runs, device, hosts=[*LOOPBACK, host])
        ready(f"http://{host}:{listening.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # Ctrl-C ends the demo
            config = uvicorn.Config(app, http=Connection, log_level="warning", lifespan="off")
            uvicorn.Server(config).run(sockets=[listening])


def load_app(runs: Path, device: str, *, hosts: Sequence[str]) -> FastAPI:
    """The app for these runs; arguments as for `serve` and `build_app`."""
    if not (runs / "config.yaml").is_file():
        return build_app(load_shown(runs, device), hosts=hosts)
    with opened_run(runs, tasks=("converse",)) as run:
        config, tables = run.config, load_tables(run.inputs.prepared.path)
    recommender = Recommender.from_run(runs).to(device_of(device))
    users = NarratedUsers(
        tables, withhold={str(recommender.feature): True}, max_history=config.data.max_history, split=config.split
    )
    return build_conversation_app(recommender, users, hosts=hosts)


def load_shown(runs: Path, device: str = "auto") -> Shown:
    """Models and users of the newest grid in a folder.

    Raises:
        FileNotFoundError: If the folder holds no runs.
        ValueError: If it holds no `cf`, `content` and `both` of one grid and the same data, or one cannot be read.
    """
    trios = newest_grid(runs)
    first = trios[0]["both"]
    if first.data is None:
        raise ValueError(f"{first.folder}: {first.inputs}")
    models: dict[str, dict[str, NarrativeModel]] = {}
    for trio in trios:
        loaded = {encoder: NarrativeModel.from_run(run.folder).to(device_of(device)) for encoder, run in trio.items()}
        models |= dict.fromkeys(loaded["both"].features, loaded)
    users = NarratedUsers(
        load_tables(first.data.path),
        withhold={name: withholds_review(models[name], name) for name in models},
        max_history=int(first.config["data"]["max_history"]),
        split=read_run_config(first.folder).split,
    )
    return Shown(models, users, [run.folder.name for trio in trios for run in trio.values()], first.data.fingerprint)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens on a loopback address.

    Raises:
        ValueError: If the address is not loopback, or the port is taken.
    """
    if not is_loopback(host) or ":" in host:
        raise ValueError(
            f"host={host}: the page shows reviews without a key, so it stays on this machine. Give host=127.0.0.1, and "
            f"from another machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
        )
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ValueError(f"port={port} of {host}: {error.strerror}. Give another: port={port + 1}") from error
