"""Starts the HTTP service of a model."""

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp

from regen.config.objects import read_run_config
from regen.config.schema import BackendName, DeviceName, ServeConfig, TaskName
from regen.generation.checks import check_precision
from regen.generation.vllm_client import is_loopback
from regen.runtime.device import device_of
from regen.runtime.narrow_weights import narrow
from regen.runtime.packed_weights import pack_weights
from regen.serving import exported
from regen.serving.backend import Backend, BackendError, NarrativeBackend
from regen.serving.connection import Connection
from regen.serving.gate import LOOPBACK
from regen.serving.model import NarrativeModel
from regen.serving.recommendation_service import create_recommendation_app
from regen.serving.recommender import Recommender
from regen.serving.recommender_backend import RecommenderBackend
from regen.serving.service import create_app
from regen.serving.trained_model import TrainedModel
from regen.serving.transformers_backend import TransformersBackend
from regen.serving.users import Users

Model = TypeVar("Model", bound=TrainedModel)
logger = logging.getLogger(__name__)
RUN_CONFIG = "config.yaml"  # runs have this file, exported models do not
GRACE = 5  # seconds for requests under way when the service stops


def serve(config: ServeConfig) -> None:
    """Serves a model until SIGINT or SIGTERM; requests under way are then given `GRACE` seconds.

    Raises:
        ValueError: If checkpoint, data, backend or address cannot be used; nothing listens then.
        FileNotFoundError: If the checkpoint or the data are not there.
    """
    key = service_key(config.host, config.api_key_env)
    limits = {
        "key": key,
        "timeout": config.timeout,
        "max_body_bytes": config.max_body_bytes,
        "hosts": [*LOOPBACK, config.host],
    }
    narrates = task_of(config.checkpoint) == TaskName.narrate
    backend, app = (narrative_service if narrates else recommendation_service)(config, limits)
    if config.dry_run:
        logger.info("serve: start first: %s", backend.needs or "nothing; dry_run=false serves the model")
        return
    # uvicorn raises SIGTERM once more after its own, graceful end
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        asyncio.run(_listen(config, backend, app))
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None if no Python code had set it


def task_of(checkpoint: str) -> str:
    """The task of a run's folder or of an exported model."""
    folder = Path(checkpoint)
    return read_run_config(folder).task.name if (folder / RUN_CONFIG).is_file() else exported.task_of(checkpoint)


def narrative_service(config: ServeConfig, limits: dict[str, Any]) -> tuple[NarrativeBackend, ASGIApp]:
    """Backend and app for a model of `task=narrate`.

    Args:
        config: The settings of `regen serve`.
        limits: Keyword arguments of `create_app`.

    Raises:
        ValueError: If data or backend cannot be used.
    """
    model = load_model(config.checkpoint)
    users = None
    if config.data is not None:
        fingerprint = model.data_fingerprint
        users = Users.of_artefact(Path(config.data), fingerprint=fingerprint, latest=model.spec.max_history)
    backend = build_backend(config, model)
    return backend, create_app(backend, users=users, **limits)


def recommendation_service(config: ServeConfig, limits: dict[str, Any]) -> tuple[RecommenderBackend, ASGIApp]:
    """Backend and app for a model of `task=recommend` or `task=converse`, its LM's weights packed for this machine.

    Arguments as for `narrative_service`.

    Raises:
        ValueError: If a setting is given that a recommender does not have, or the model cannot be used.
    """
    for name, value in (("data", config.data), ("precision", config.precision)):
        if value is not None:
            raise ValueError(f"{name}={value} belongs to models that write narratives of given users. Leave it out.")
    if config.backend != BackendName.transformers:
        raise ValueError(f"backend={config.backend}: a recommender is served in this process. Leave it out.")
    recommender = loaded(Recommender, config.checkpoint).to(device_of(config.device))
    pack_weights(recommender.soft_token_lm.lm, backward=False)
    backend = RecommenderBackend(recommender, rows=config.rows, queue=config.queue)
    return backend, create_recommendation_app(backend, **limits)


def service_key(host: str, variable: str) -> str | None:
    """The key that clients have to send; None if it is not set and only this machine can connect.

    Raises:
        ValueError: If other machines can connect and the key is not set.
    """
    key = os.environ.get(variable) or None
    if key is None and not is_loopback(host):
        raise ValueError(
            f"host={host} lets other machines ask, which needs a key. Set the environment variable {variable}, for "
            "example to the output of 'openssl rand -hex 32', or keep host=127.0.0.1."
        )
    return key


def loaded(kind: type[Model], folder: str) -> Model:
    """Loads an exported model or a finished run."""
    return kind.from_run(folder) if Path(folder, RUN_CONFIG).is_file() else kind.from_pretrained(folder)


def load_model(folder: str) -> NarrativeModel:
    """Loads a model that writes narratives."""
    model = loaded(NarrativeModel, folder)
    if model.generation.do_sample:
        logger.warning("%s: its generation settings sample, but the service decodes greedily.", folder)
    return model


def build_backend(config: ServeConfig, model: NarrativeModel) -> NarrativeBackend:
    """The backend that `backend` names, with the LM's weights packed for this machine.

    Raises:
        ValueError: If the backend or the machine does not have the precision.
    """
    if config.backend == BackendName.vllm:
        from regen.serving.vllm_backend import VLLMBackend

        check_precision(config.precision, setting="precision", server="backend=vllm")
        return VLLMBackend(model, base_url=config.vllm, rows=config.rows, queue=config.queue, timeout=config.timeout)
    on_cpu = config.precision is not None and config.device == DeviceName.auto  # int8 needs a CPU
    model.to(device_of(DeviceName.cpu if on_cpu else config.device))
    if config.precision is not None:
        narrow(model.soft_token_lm.lm)
    pack_weights(model.soft_token_lm.lm, backward=False)
    return TransformersBackend(model, rows=config.rows, queue=config.queue)


async def _listen(config: ServeConfig, backend: Backend[Any], app: ASGIApp) -> None:
    listening = _bound(config.host, config.port)
    try:
        async with backend:
            await Server(app).serve(sockets=[listening])
    except BackendError as error:
        raise ValueError(f"backend={config.backend}: {error}") from error
    finally:
        listening.close()


class Server(uvicorn.Server):
    """uvicorn with the settings of this service.

    Logs go to Hydra's handlers. Requests are counted, not logged. Clients that stop reading are disconnected. The
    address is logged when the service accepts connections.

    Args:
        app: The service.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=GRACE,
                server_header=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            logger.info("serve: http://%s:%d/docs", f"[{host}]" if ":" in host else host, port)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ValueError(f"host={host} port={port}: {error.strerror}. Take another port.") from error
    return listening
