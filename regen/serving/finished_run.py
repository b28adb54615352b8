"""From a finished training run to the parts of a `NarrativeModel`."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from regen.data.prepare import load_tables
from regen.data.tables import nearest
from regen.embeddings.encode import load_cf
from regen.evaluation.scoring import SCORES
from regen.generation.narratives import generation_config
from regen.models.soft_token_lm import SoftTokenLM
from regen.pipeline import encoder_parts, plain
from regen.serving.card import model_card
from regen.serving.history_encoder import SERVED
from regen.serving.items import Items
from regen.serving.spec import Spec
from regen.serving.weights import OF_LM
from regen.training.assembly import RUN_OPTIONS
from regen.training.run import RECORD, LoadedRun, load, opened_run


def parts_of_run(folder: Path) -> dict[str, Any]:
    """The arguments of `NarrativeModel` for a run.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, or its encoder reads no history of one's own.
    """
    with opened_run(folder) as run:
        if run.cfg.encoder.name not in SERVED:
            raise ValueError(
                f"{folder}: encoder={run.cfg.encoder.name} cannot be exported: it is a baseline or control without "
                f"vectors of its own. {nearest(run.cfg.encoder.name, SERVED)}"
            )
        generation = plain(run.cfg.evaluation.generation)
        if generation.get("max_new_tokens") is None:
            raise ValueError(f"{folder}: evaluation.generation.max_new_tokens is not set, which a served model needs.")
        loaded = load(run)
        tables = load_tables(run.inputs.prepared.path)
        factors = None
        if "cf" in run.inputs.encoded:
            factors = np.asarray(load_cf(run.inputs.encoded["cf"], tables).vectors, dtype=np.float32)
    spec = _spec(loaded, cf_dim=0 if factors is None else factors.shape[1])
    scores = folder / SCORES
    return {
        "spec": spec,
        "soft_token_lm": loaded.model,
        "lm": loaded.lm,
        "items": Items(tables.items, factors),
        "generation": generation_config(generation, loaded.lm.tokenizer),
        "card": model_card(spec, json.loads(scores.read_text()) if scores.is_file() else {}),
    }


def _spec(loaded: LoadedRun, *, cf_dim: int) -> Spec:
    run, cfg = loaded.run, loaded.run.cfg
    versions = json.loads((run.folder / RECORD).read_text())["versions"]
    if "content" in run.inputs.encoded:
        versions["sentence-transformers"] = metadata.version("sentence-transformers")
    features = {
        name: {key: options[key] for key in ("prompt", "withhold_final_review")}
        for name, options in plain(cfg.feature).items()
    }
    return Spec(
        run=run.folder.name,
        encoder=cfg.encoder.name,
        dim=loaded.data.splits["train"].vectors.dim,  # type: ignore[attr-defined]
        cf_dim=cf_dim,
        embeddings={name: plain(cfg[name]) for name in encoder_parts(cfg.encoder.name)},
        seed=cfg.seed,
        adapter={key: value for key, value in plain(cfg.adapter).items() if key not in RUN_OPTIONS},
        lm=plain(cfg.lm),
        lm_width=loaded.lm.width,
        embedding_norm=loaded.lm.embedding_norm(),
        lm_layers=loaded.lm.layers,
        lm_vocabulary=loaded.lm.vocabulary,
        lm_digest=loaded.lm.weights_digest(),
        tuning=_tuning(loaded.model),
        features=features,
        max_history=cfg.data.max_history,
        data={
            "fingerprint": run.inputs.prepared.fingerprint,
            "inputs": run.inputs.fingerprints(),
            "source": str(cfg.source._target_),
            "vertical": str(cfg.vertical.name),
            "narrator": str(cfg.narrator.name),
        },
        versions=versions,
    )


def _tuning(model: SoftTokenLM) -> str:
    """What of the LM was trained: low-rank updates, its own weights, or nothing."""
    from peft import PeftModel

    if isinstance(model.lm, PeftModel):
        return "lora"
    return "full" if any(name.startswith(OF_LM) for name in model.trained_state()) else "frozen"
