"""From a config to a listening service."""

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from omegaconf import DictConfig
from starlette.types import ASGIApp

from regen.config.schema import BackendName
from regen.generation.vllm_client import check_precision, is_loopback
from regen.runtime.narrow_weights import narrow
from regen.runtime.packed_weights import pack_weights
from regen.serving.connection import Connection
from regen.serving.engine import Engine, EngineError
from regen.serving.gate import LOOPBACK
from regen.serving.model import NarrativeModel
from regen.serving.service import create_app
from regen.serving.transformers_engine import TransformersEngine
from regen.serving.users import Users

logger = logging.getLogger(__name__)
RUN_CONFIG = "config.yaml"  # in the folder of a run, not in an exported one
GRACE = 5  # seconds for requests under way when the service is told to stop


def serve(cfg: DictConfig) -> None:
    """Listens until it is told to stop, by SIGINT or SIGTERM; requests under way are then given `GRACE` seconds.

    Raises:
        ValueError: If checkpoint, data, engine or address cannot be used; nothing listens then.
        FileNotFoundError: If the checkpoint or the data are not there.
    """
    key = service_key(cfg.host, cfg.api_key_env)
    model = load_model(cfg.checkpoint)
    users = None
    if cfg.data is not None:
        fingerprint = model.data_fingerprint
        users = Users.of_artefact(Path(cfg.data), fingerprint=fingerprint, latest=model.spec.max_history)
    engine = build_engine(cfg, model)
    if cfg.dry_run:
        logger.info("serve: start first: %s", engine.needs or "nothing; dry_run=false serves the model")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it once more after its own, graceful end
    asyncio.run(_listen(cfg, engine, users, key))


def service_key(host: str, variable: str) -> str | None:
    """The key that clients have to send, None where nobody but this machine can ask.

    Raises:
        ValueError: If other machines can ask and there is no key.
    """
    key = os.environ.get(variable) or None
    if key is None and not is_loopback(host):
        raise ValueError(
            f"host={host} lets other machines ask, which needs a key. Set the environment variable {variable}, for "
            "example to what 'openssl rand -hex 32' prints, or keep host=127.0.0.1."
        )
    return key


def load_model(folder: str) -> NarrativeModel:
    """An exported model, or a finished run."""
    model = (
        NarrativeModel.from_run(folder)
        if Path(folder, RUN_CONFIG).is_file()
        else NarrativeModel.from_pretrained(folder)
    )
    if model.generation.do_sample:
        logger.warning("%s: its generation settings sample; the service writes the likeliest text instead.", folder)
    return model


def build_engine(cfg: DictConfig, model: NarrativeModel) -> Engine:
    """What `backend` names, with the LM's weights laid out for this machine.

    Raises:
        ValueError: If the precision is not to be had.
    """
    if cfg.backend == BackendName.vllm:
        from regen.serving.vllm_engine import VLLMEngine

        check_precision(cfg.precision and cfg.precision.name, setting="precision", server="backend=vllm")
        return VLLMEngine(model, base_url=cfg.vllm, rows=cfg.rows, queue=cfg.queue, timeout=cfg.timeout)
    if cfg.precision is not None:
        narrow(model.soft_token_lm.lm)
    pack_weights(model.soft_token_lm.lm, backward=False)
    return TransformersEngine(model, rows=cfg.rows, queue=cfg.queue)


async def _listen(cfg: DictConfig, engine: Engine, users: Users | None, key: str | None) -> None:
    listening = _bound(cfg.host, cfg.port)
    try:
        async with engine:
            app = create_app(
                engine,
                users=users,
                key=key,
                timeout=cfg.timeout,
                max_body_bytes=cfg.max_body_bytes,
                hosts=[*LOOPBACK, cfg.host],
            )
            await Server(app).serve(sockets=[listening])
    except EngineError as error:
        raise ValueError(f"backend={cfg.backend.name}: {error}") from error
    finally:
        listening.close()


class Server(uvicorn.Server):
    """uvicorn as this service runs it.

    Logs go where Hydra sends them. Requests are counted and not logged. A client that stops reading is cut off.
    The address is logged once connections are accepted.

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
