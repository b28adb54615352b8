"""The W&B logger of a run: a group per grid, and the data that the run reads.

It works offline: all that is logged stays in the run's folder, and `wandb sync` makes the same groups, tables and
lineage of it later. Reviews stay where they are unless `logger.wandb.log_data=true`: of the inputs, W&B gets names,
hashes and recipes. Frozen weights are in no artifact, because a run's weights file holds only what was trained.
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

__all__ = ["grid_name", "input_artifact", "use_inputs", "wandb_logger", "without_secrets"]

LONGEST_TAG = 64  # what W&B takes
_OWN = ("offline", "log_data", "log_weights", "table_rows")  # options that wandb.init does not know
_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@contextmanager
def wandb_logger(run: Run, node: Component) -> Iterator[Any]:
    """Lightning's W&B logger of a run, its inputs recorded; closed whatever happens, so that cells do not merge."""
    import wandb
    from hydra.utils import get_class

    options = dict(node.node)
    offline = options["offline"]
    options = {key: value for key, value in options.items() if key not in (*_OWN, "_target_")}
    options |= {
        "group": options["group"] or grid_name(),
        "job_type": "train",
        "tags": _tags(run, options["tags"]),
        "mode": "offline" if offline else None,  # Lightning's own `offline` would hold for all later cells too
        "name": run.folder.name,
        "id": run.folder.name.rsplit("-", 1)[1],  # so that a resumed run goes on there too (offline ones ignore that)
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
    """The folder of this multirun below `grids/`, which its cells share as their group; None for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    parts = Path(HydraConfig.get().sweep.dir).parts
    below = parts[parts.index("grids") + 1 :] if "grids" in parts else ()
    return "_".join(below or parts[-1:])


def use_inputs(experiment: Any, run: Run, *, upload: bool) -> None:
    """Records the artefacts that a run reads as its inputs; `upload` is that of `input_artifact`."""
    for name, artefact in {"prepared": run.inputs.prepared, **run.inputs.encoded}.items():
        kind = "dataset" if name == "prepared" else "embeddings"
        artifact = input_artifact(artefact, kind, upload=upload)
        if experiment.offline:  # what use_artifact does, which refuses to offline; `wandb sync` carries it out
            experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        elif not experiment.disabled:
            experiment.use_artifact(artifact)


def input_artifact(artefact: Artefact, kind: str, *, upload: bool) -> Any:
    """A W&B artifact of one of ours, its manifest as metadata.

    Args:
        artefact: Prepared data or vectors.
        kind: The artifact's type.
        upload: Whether the files themselves go to W&B; else only where they are and their hashes.
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
    """Plain values without keys and passwords; a setting that names an environment variable stays."""
    if isinstance(node, Mapping):
        kept = {key: value for key, value in node.items() if not (isinstance(value, str) and _SECRET.search(str(key)))}
        return {key: without_secrets(value) for key, value in kept.items()}
    if isinstance(node, list | tuple):
        return [without_secrets(value) for value in node]
    return _CREDENTIALS.sub("", node) if isinstance(node, str) else node


@contextmanager
def _copies_in(folder: Path) -> Iterator[None]:
    """Lets W&B keep what it has yet to upload in this folder rather than in the user's home."""
    import wandb.env

    before = os.environ.get(wandb.env.DATA_DIR)
    os.environ.setdefault(wandb.env.DATA_DIR, str(folder.resolve()))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(wandb.env.DATA_DIR, None)
