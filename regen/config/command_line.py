"""Runs Hydra commands that answer a user's mistake with a short message instead of a traceback.

    @main("train")
    def train_main(config: TrainConfig) -> float: ...

Exit codes: 0 done, 1 the task failed, 2 the command or its config is wrong, 130 interrupted. The environment variable
HYDRA_FULL_ERROR=1 shows all tracebacks.
"""

import functools
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.utils import JobReturn
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from regen.config.errors import check, explain
from regen.config.objects import typed
from regen.config.registration import register
from regen.config.schema import CONF
from regen.runtime.console import quiet_libraries

PACKAGE_DIR = Path(__file__).resolve().parents[1]
FULL_ERROR = "HYDRA_FULL_ERROR"
HINT = f"Set {FULL_ERROR}=1 for the traceback."
_CONFIG_ERRORS = (ConfigCompositionException, InterpolationResolutionError, MissingMandatoryValue)
_CREDENTIALS = re.compile(r"://[^/?#\s]*@|base_url=[^?]*\?")  # a user name, password or query in a URL

Task = Callable[[Any], Any]


def main(config_name: str, *, config_dir: Path = CONF) -> Callable[[Task], Callable[[], None]]:
    """Decorates the main function of a command, like `hydra.main`; the function gets the typed config."""

    def decorate(task: Task) -> Callable[[], None]:
        @functools.wraps(task)
        def with_objects(cfg: DictConfig) -> Any:
            return task(typed(cfg))

        @functools.wraps(task)
        def command() -> None:
            run_hydra(with_objects, config_name=config_name, config_dir=config_dir)

        return command

    return decorate


def run_hydra(task: Task, *, config_name: str, config_dir: Path = CONF) -> None:
    """Composes the config from `sys.argv`, checks it, and runs the task once per job.

    Args:
        task: Gets the config of a job. Import heavy libraries inside it, so that `--help` stays fast.
        config_name: The primary config, a file of `config_dir` without its ending.
        config_dir: Folder of YAML files.

    Raises:
        SystemExit: Code 2 for a mistake in the command or config, 1 for input that regen refuses, 130 for an
            interrupt. The message is on stderr. Other errors of the task pass through.
    """
    _refuse_credentials(sys.argv[1:])
    register()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before hydra/launcher=ray starts it
    full_error = os.environ.get(FULL_ERROR) == "1"
    job = _guarded(task, full_error=full_error)
    command = hydra.main(version_base="1.3", config_path=str(config_dir.resolve()), config_name=config_name)(job)
    try:
        with _full_error_set(True):  # Hydra then raises instead of printing and exiting
            command()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit(1)
            _interrupted()
        raise
    except Exception as error:
        if full_error:
            raise
        code, message = _verdict(error, config_name, config_dir)
        if message is None:
            raise
        _exit(code, f"error: {message}")


def _refuse_credentials(arguments: list[str]) -> None:
    """Exits if an argument contains credentials, before Hydra writes it to disk."""
    for argument in arguments:
        if _CREDENTIALS.search(argument):
            name = argument.partition("=")[0]
            _exit(
                2,
                f"error: {name}= has credentials or a query in its URL, which would be written to disk. Put the key "
                "into the environment variable that api_key_env names.",
            )


def _guarded(task: Task, *, full_error: bool) -> Task:
    """Wraps a task: checks its config first, and marks errors that need no traceback."""

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        with _full_error_set(full_error):  # processes that the task starts get the user's value
            check(cfg)
            quiet_libraries()
            try:
                return task(cfg)
            except (ValueError, OSError) as error:
                if _is_refusal(error):
                    error.add_note(HINT)  # a note survives pickling on the way from a worker process
                raise

    return job


@contextmanager
def _full_error_set(on: bool) -> Iterator[None]:
    before = os.environ.pop(FULL_ERROR, None)
    try:
        if on:
            os.environ[FULL_ERROR] = "1"
        yield
    finally:
        os.environ.pop(FULL_ERROR, None)
        if before is not None:
            os.environ[FULL_ERROR] = before


def _is_refusal(error: BaseException) -> bool:
    """Whether a `raise` statement in regen's own code made the error."""
    tables = sys.modules.get("regen.data.tables")  # not imported here, because it is slow
    if tables is not None and isinstance(error, tables.DataError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).resolve().is_relative_to(PACKAGE_DIR):
        return False
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    return line.lstrip().startswith("raise ")


def _verdict(error: Exception, config_name: str, config_dir: Path) -> tuple[int, str | None]:
    """Exit code and message of an error; the message is None if the traceback is needed."""
    if _is_of_a_job(error):
        if HINT in getattr(error, "__notes__", ()):
            return 1, "\n".join([str(error), *error.__notes__])
        explained: tuple[type[Exception], ...] = _CONFIG_ERRORS
    else:
        explained = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
    if not isinstance(error, explained):
        return 1, None
    return 2, explain(error, config_name=config_name, config_dir=config_dir, arguments=sys.argv[1:])


def _is_of_a_job(error: Exception) -> bool:
    """Whether the task raised the error. Hydra raises it again when it reads the result of the job."""
    result = JobReturn.return_value.fget.__code__  # type: ignore[attr-defined]
    return any(frame.f_code is result for frame, _ in traceback.walk_tb(error.__traceback__))


def _interrupted() -> None:
    _exit(130, "Interrupted. The same command continues where it stopped.")


def _exit(code: int, message: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(message.rstrip() + "\n")
    sys.exit(code)
