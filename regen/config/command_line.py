"""The command line: Hydra's, but a user's mistake gets a short message instead of a traceback.

    @main("train")
    def train_main(config: TrainConfig) -> float: ...

Exit codes: 0 done, 1 the task failed, 2 the command or its config is wrong, 130 interrupted. HYDRA_FULL_ERROR=1 in the
environment brings all tracebacks back.
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
_OF_THE_CONFIG = (ConfigCompositionException, InterpolationResolutionError, MissingMandatoryValue)
_OF_THE_CONFIG = (ConfigCompositionException, InterpolationResolutionError, MissingMandatoryValue)
_CREDENTIALS = re.compile(r"://[^/?#\s]*@|base_url=[^?]*\?")  # a user name, a password or a query in an address

Task = Callable[[Any], Any]


def main(config_name: str, *, config_dir: Path = CONF) -> Callable[[Task], Callable[[], None]]:
    """Makes a task the main function of a script, as `hydra.main` does; see `run_hydra`.

    The task is called with the typed object of the config (`regen.config.objects.typed`).
    """

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
    """Composes the config from `sys.argv`, checks every job of a sweep, then runs the task once per job.

    Args:
        task: called with each job's config. Import heavy libraries inside it: `--help` does not call it.
        config_name: the primary config, a file of `config_dir` without its ending.
        config_dir: the folder of YAML files.

    Raises:
        SystemExit: with code 2 for a mistake in the command or the config, 1 for bad input that regen refuses on
            purpose, 130 for an interrupt; a message is on stderr. Other errors of the task pass through.
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
    """Exits before Hydra can write an address with a password into its folder."""
    for argument in arguments:
        if _CREDENTIALS.search(argument):
            name = argument.partition("=")[0]
            _exit(
                2,
                f"error: {name}= holds credentials or a query in its address, which would be written to disk. Put the "
                "key into the environment variable that api_key_env names.",
            )


def _guarded(task: Task, *, full_error: bool) -> Task:
    """Wraps a task to check its config before it starts and to mark the errors that need no traceback."""

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        with _full_error_set(full_error):  # processes that the task starts see what the user set
            check(cfg)
            quiet_libraries()
            try:
                return task(cfg)
            except (ValueError, OSError) as error:
                if _is_refusal(error):
                    error.add_note(HINT)  # a note, because it survives the way back from a worker process
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
    """Whether regen's own code refused something on purpose, by a `raise` statement, and did not just break."""
    tables = sys.modules.get("regen.data.tables")  # an error of its class cannot exist before it is imported
    if tables is not None and isinstance(error, tables.DataError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).resolve().is_relative_to(PACKAGE_DIR):
        return False
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    return line.lstrip().startswith("raise ")


def _verdict(error: Exception, config_name: str, config_dir: Path) -> tuple[int, str | None]:
    """Exit code and message of an error; no message if it needs its traceback."""
    if _is_of_a_job(error):
        if HINT in getattr(error, "__notes__", ()):
            return 1, "\n".join([str(error), *error.__notes__])
        explained: tuple[type[Exception], ...] = _OF_THE_CONFIG
    else:
        explained = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
    if not isinstance(error, explained):
        return 1, None
    return 2, explain(error, config_name=config_name, config_dir=config_dir, arguments=sys.argv[1:])


def _is_of_a_job(error: Exception) -> bool:
    """Whether the error came out of the task: Hydra keeps those and raises them when it reads a job's result."""
    result = JobReturn.return_value.fget.__code__  # type: ignore[attr-defined]
    return any(frame.f_code is result for frame, _ in traceback.walk_tb(error.__traceback__))


def _interrupted() -> None:
    _exit(130, "Interrupted. The same command continues where it stopped.")


def _exit(code: int, message: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(message.rstrip() + "\n")
    sys.exit(code)
