"""Item vectors of SASRec (Kang and McAuley 2018), which RecTools trains in a Python environment of its own."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import ClassVar

import numpy as np
import polars as pl
from jaxtyping import Float, Int

SCRIPT = Path(__file__).with_name("sasrec_script.py")
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('rectools') is None)"
HEADS = 2  # of the script's attention
_STDERR = 2  # descriptor of this process's stderr, which also shows the script's progress
_SHOWN = 20  # last lines of the script's errors


@dataclass(kw_only=True)
class SASRec:
    """A transformer that predicts each purchase from the ones before it; its item vectors are the CF factors.

    RecTools needs older libraries than `regen`. So `sasrec_script.py` trains in another process, with another Python.
    The two exchange Parquet files.

    Args:
        factors: Width of the item vectors and of the transformer; even, because there are two attention heads.
        dropout: Dropout rate.
        epochs: Passes over the sequences.
        seed: Seed of the initial weights, of the dropout and of the order of the sequences.
        python: Python of an environment with RecTools. A relative path starts at the working directory.
    """

    version: ClassVar[int] = 1  # raise it when the script or its RecTools gives other vectors

    factors: int
    dropout: float
    epochs: int
    seed: int
    python: str

    def __post_init__(self) -> None:
        if self.factors % HEADS:
            raise ValueError(
                f"cf.model.factors={self.factors}: SASRec has {HEADS} attention heads, so use an even number."
            )

    def fit_sequences(
        self, sequences: Sequence[Int[np.ndarray, " _"]], *, items: int
    ) -> Float[np.ndarray, "items factors"]:
        """Trains SASRec on the sequences; users with one purchase teach it nothing.

        Raises:
            ValueError: If the environment is missing, no user has two purchases, or the training fails.
        """
        check_environment(self.python)
        if all(len(bought) < 2 for bought in sequences):
            raise ValueError("cf=sasrec learns from the order of purchases, and no training user has two. Use cf=als.")
        settings = {name: value for name, value in asdict(self).items() if name != "python"}
        with TemporaryDirectory() as folder:
            given, made = Path(folder, "sequences.parquet"), Path(folder, "vectors.parquet")
            bought = pl.Series("items", sequences, dtype=pl.List(pl.Int64))
            bought.to_frame().with_row_index("user_id").write_parquet(given)
            _run([self.python, "-I", str(SCRIPT), str(given), str(made), json.dumps(settings)])
            trained = pl.read_parquet(made, glob=False)
        vectors = np.array(trained["vector"].to_list(), dtype=np.float32)
        factors = np.zeros((items, vectors.shape[1]), dtype=np.float32)
        factors[trained["item"].to_numpy()] = vectors
        return factors


def check_environment(python: str) -> None:
    """Checks that a Python has RecTools.

    Raises:
        ValueError: If it does not; the message says how to make the environment.
    """
    try:
        found = subprocess.run([python, "-I", "-c", _FIND], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise ValueError(
            f"cf=sasrec: {python} is no Python with RecTools, which trains SASRec in an environment of its own. "
            "Run `make baselines-env`, or set cf.model.python to a Python that has rectools[torch]."
        )


def _run(command: Sequence[str]) -> None:
    """Runs the script. Its standard output, which is its progress, is shown at once; its errors if it fails."""
    with TemporaryFile() as errors:
        code = subprocess.run(command, stdout=_STDERR, stderr=errors, check=False).returncode
        if code != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()
            raise ValueError(f"cf=sasrec: its training ended with code {code}.\n" + "\n".join(lines[-_SHOWN:]))
