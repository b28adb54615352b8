"""Loads a finished training run to serve or export it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from regen.config.objects import plain
from regen.config.schema import TaskName, TrainConfig
from regen.data.prepare import load_tables
from regen.data.tables import nearest
from regen.embeddings.encode import load_cf
from regen.evaluation.scoring import SCORES
from regen.generation.narratives import generation_config
from regen.models.soft_token_lm import SoftTokenLM
from regen.pipeline import load_run, opened_run
from regen.serving.card import model_card
from regen.serving.history_encoder import SERVED
from regen.serving.items import Items
from regen.serving.spec import Ranking, Spec
from regen.serving.weights import OF_LM
from regen.storage.identity import Inputs
from regen.training.recommendation import NextItemData
from regen.training.run import RECORD, LoadedRun, Run


def parts_of_run(folder: Path, *, tasks: Sequence[str]) -> dict[str, Any]:
    """The arguments of `NarrativeModel` or `Recommender` for a run.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, is of another task, or has an encoder that cannot encode new histories.
    """
    with served_run(folder, tasks=tasks) as run:
        generation = run.config.evaluation.generation
        if generation.get("max_new_tokens") is None:
            raise ValueError(f"{folder}: set evaluation.generation.max_new_tokens; a served model needs it.")
        loaded = load_run(run)
        items = items_of(run.inputs)
    spec = _spec(loaded, cf_dim=0 if items.factors is None else items.factors.shape[1])
    scores = folder / SCORES
    form = loaded.data.closed_form if isinstance(loaded.data, NextItemData) else None
    return {
        "spec": spec,
        "soft_token_lm": loaded.model,
        "lm": loaded.lm,
        "items": items,
        "generation": generation_config(generation, loaded.lm.tokenizer),
        "card": model_card(spec, json.loads(scores.read_text()) if scores.is_file() else {}, form),
        **({} if form is None else {"closed_form": form}),
    }


@contextmanager
def served_run(folder: Path, *, tasks: Sequence[str]) -> Iterator[Run]:
    """`opened_run`, for a run whose encoder can encode new histories.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, is of another task, or has another encoder.
    """
    with opened_run(folder, tasks=tasks) as run:
        encoder = run.config.encoder.name
        if encoder not in SERVED:
            raise ValueError(
                f"{folder}: a model with encoder={encoder} cannot be exported or served, because it cannot encode new "
                f"histories. {nearest(encoder, SERVED)}"
            )
        yield run


def items_of(inputs: Inputs) -> Items:
    """The items that a run was trained with, with their CF factors if its encoder reads them."""
    tables = load_tables(inputs.prepared.path)
    cf = inputs.encoded.get("cf")
    factors = None if cf is None else np.asarray(load_cf(cf, tables).vectors, dtype=np.float32)
    return Items(tables.items, factors)


def _spec(loaded: LoadedRun, *, cf_dim: int) -> Spec:
    run, config = loaded.run, loaded.run.config
    versions = json.loads((run.folder / RECORD).read_text())["versions"]
    ranking = _ranking(config) if config.task.ranks else None
    if "content" in run.inputs.encoded or (ranking is not None and ranking.critiques is not None):
        versions["sentence-transformers"] = metadata.version("sentence-transformers")
    features = {
        name: {"prompt": feature.prompt, "withhold_final_review": feature.withhold_final_review}
        for name, feature in config.feature.items()
    }
    return Spec(
        run=run.folder.name,
        encoder=config.encoder.name,
        dim=loaded.data.splits["train"].vectors.dim,  # type: ignore[attr-defined]
        cf_dim=cf_dim,
        embeddings={name: plain(getattr(config, name)) for name in config.encoder.parts},
        seed=config.seed,
        adapter={"_target_": config.adapter.target, **config.adapter.options},
        lm=dict(config.lm.node),
        lm_width=loaded.lm.width,
        embedding_norm=loaded.lm.embedding_norm(),
        lm_layers=loaded.lm.layers,
        lm_vocabulary=loaded.lm.vocabulary,
        lm_digest=loaded.lm.weights_digest(),
        tuning=_tuning(loaded.model),
        features=features,
        max_history=config.data.max_history,
        data={
            "fingerprint": run.inputs.prepared.fingerprint,
            "inputs": run.inputs.fingerprints(),
            "source": config.source.target,
            "vertical": str(config.vertical.name),
            "narrator": str(config.narrator.name),
        },
        versions=versions,
        ranking=ranking,
    )


def _ranking(config: TrainConfig) -> Ranking:
    return Ranking(
        exclude_bought=config.task.exclude_bought,
        critiques=config.content.pretrained if config.data.critiques else None,
        narrative_weight=config.task.narrative_weight if config.task.name == TaskName.converse else None,
    )


def _tuning(model: SoftTokenLM) -> str:
    """How the LM was trained: `lora`, `full` or `frozen`."""
    from peft import PeftModel

    if isinstance(model.lm, PeftModel):
        return "lora"
    return "full" if any(name.startswith(OF_LM) for name in model.trained_state()) else "frozen"
