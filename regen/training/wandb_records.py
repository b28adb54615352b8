"""The W&B logger of a run: its group is the grid, and it records the artefacts that the run reads.

Offline runs log to the run's folder, and `wandb sync` uploads the same groups, tables and lineage later. Unless
`logger.wandb.log_data=true`, W&B gets names, hashes and recipes of the input data, and no reviews. Frozen weights are
never uploaded, because the weights file of a run holds trained weights only.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from regen.config.objects import Component, plain
from regen.storage.artefacts import Artefact
from regen.training.run import Run, is_main_process

LONGEST_TAG = 64  # limit of W&B
_OWN = ("offline", "log_data", "log_weights", "table_rows")  # options that are not arguments of wandb.init
_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@contextmanager
def wandb_logger(run: Run, node: Component) -> Iterator[Any]:
    """Yields Lightning's W&B logger of a run and closes it at the end, so that the runs of a grid do not merge."""
    import wandb
    from hydra.utils import get_class

    options = {key: value for key, value in node.options.items() if key not in _OWN}
    options |= {
        "group": options["group"] or grid_name(),
        "job_type": "train",
        "tags": _tags(run, options["tags"]),
        "mode": "offline" if node.options["offline"] else None,  # Lightning's own `offline` also affects later runs
        "name": run.folder.name,
        "id": run.folder.name.rsplit("-", 1)[1],  # so that a resumed run continues online (offline ones ignore it)
        "resume": "allow",
    }
    config = without_secrets({**plain(run.config), "inputs": run.inputs.fingerprints()})
    failed = True
    with _copies_in(run.folder / "wandb" / "data"):
        try:
            run_logger = get_class(node.target)(**options, save_dir=str(run.folder), config=config)
            if is_main_process():
                use_inputs(run_logger.experiment, run, upload=node.options["log_data"])
            yield run_logger
            failed = False
        finally:
            wandb.finish(exit_code=int(failed))


def grid_name() -> str | None:
    """The W&B group of a multirun: its folder in `grids/`; None for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    parts = Path(HydraConfig.get().sweep.dir).parts
    below = parts[parts.index("grids") + 1 :] if "grids" in parts else ()
    return "_".join(below or parts[-1:])


def use_inputs(experiment: Any, run: Run, *, upload: bool) -> None:
    """Records the artefacts that a run reads as its inputs. For `upload` see `input_artifact`."""
    for name, artefact in {"prepared": run.inputs.prepared, **run.inputs.encoded}.items():
        kind = "dataset" if name == "prepared" else "embeddings"
        artifact = input_artifact(artefact, kind, upload=upload)
        if experiment.offline:  # use_artifact refuses this offline; `wandb sync` completes it
            experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        elif not experiment.disabled:
            experiment.use_artifact(artifact)


def input_artifact(artefact: Artefact, kind: str, *, upload: bool) -> Any:
    """Makes a W&B artifact from an artefact, with its manifest as metadata.

    Args:
        artefact: Prepared data or vectors.
        kind: The artifact's type.
        upload: Whether to upload the files; otherwise only their paths and hashes.
    """
    import wandb

    artifact = wandb.Artifact(artefact.path.name, type=kind, metadata=without_secrets(artefact.manifest))
    for name in artefact.manifest["files"]:
        path = (artefact.path / name).resolve()
        if upload:
            artifact.add_file(str(path), name=name, policy="immutable")
        else:
            artifact.add_reference(path.as_uri(), name=name)
    return artifact


def _tags(run: Run, given: Sequence[str]) -> list[str]:
    names = [f"encoder:{run.config.encoder.name}", f"adapter:{run.config.adapter.name}"]
    tags = [*given, *names, *(f"feature:{feature}" for feature in run.config.feature)]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags))


def without_secrets(node: Any) -> Any:
    """Removes keys and passwords from plain values; names of environment variables stay."""
    if isinstance(node, Mapping):
        kept = {key: value for key, value in node.items() if not (isinstance(value, str) and _SECRET.search(str(key)))}
        return {key: without_secrets(value) for key, value in kept.items()}
    if isinstance(node, list | tuple):
        return [without_secrets(value) for value in node]
    return _CREDENTIALS.sub("", node) if isinstance(node, str) else node


@contextmanager
def _copies_in(folder: Path) -> Iterator[None]:
    """Makes W&B stage its uploads in this folder instead of the user's home."""
    import wandb.env

    before = os.environ.get(wandb.env.DATA_DIR)
    os.environ.setdefault(wandb.env.DATA_DIR, str(folder.resolve()))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(wandb.env.DATA_DIR, None)
