"""The parts of a model card that only recommenders have: item head and ranking metrics."""

from collections.abc import Mapping
from typing import Any

from regen.evaluation.text_metrics import METRICS
from regen.models.closed_form import ClosedForm
from regen.serving.card_tables import score_text, table
from regen.serving.spec import Ranking, Spec

PERFECT = "perfect reader"
RANKED = ("recall_10", "ndcg_10", "mrr")
RANKING_LIMITS = (
    "It ranks the items of its training data only. An item without training purchases is ranked by its text; an "
    "encoder without content cannot rank it.",
    "Scores are comparable within one answer only. They are not probabilities.",
    "Popular items are ranked higher if the `popularity` of the closed form is above 0.",
)


def recommender_opening(spec: Spec) -> list[str]:
    """Title, purpose and example."""
    tells = spec.task == "converse"
    critiques = "" if spec.ranking is None or spec.ranking.critiques is None else " and what the customer said"
    about = ", and writes about the first one" if tells else ""
    call = "model.converse(HISTORY)" if tells else "model.recommend(HISTORY, k=10)"
    return [
        f"# Recommendations from purchase histories: {', '.join(spec.features)} ({spec.encoder})",
        f"Reads a customer's purchases, one soft token per purchase{critiques}. Ranks all items of its catalogue as "
        f"the next purchase{about}. For research on recommenders that explain themselves; not for decisions about "
        "people.",
        "```python\nfrom regen import Recommender\n\nmodel = Recommender.from_pretrained(FOLDER_OR_HUB_ID)\n"
        f"print({call})\n```",
    ]


def head_rows(spec: Spec, form: ClosedForm) -> list[tuple[str, str]]:
    """Rows of the table of the model: item head, closed form, catalogue and critiques."""
    assert spec.ranking is not None
    said = spec.ranking.critiques
    return [
        (
            "item head",
            f"query of the closed form plus a linear readout of the LM's hidden state, {spec.lm_width} to {spec.dim} "
            "dimensions; a score is its dot product with the item's vector, plus popularity",
        ),
        (
            "closed form",
            f"ridge regression to the next item: decay {form.decay:g}, ridge {form.ridge:g}, item ridge "
            f"{form.item_ridge:g}, popularity {form.popularity:.3g}"
            + (", last purchase apart from the mean" if form.last_apart else ""),
        ),
        ("catalogue", f"{len(form.items):,} items"),
        ("critiques", "not read" if said is None else f"the closed form reads their embedding ({said}), the LM words"),
    ]


def ranking_scores(ranking: Ranking, by_metric: Mapping[str, Mapping[str, Any]]) -> str:
    """Recall@10, NDCG@10 and MRR of the model, the closed form and the other recommenders."""
    shown = {name: by_metric[name] for name in RANKED if name in by_metric}
    systems = list(dict.fromkeys(system for by_system in shown.values() for system in by_system))
    users = next((by_system["model"]["users"] for by_system in shown.values() if "model" in by_system), 0)
    bought = "are excluded" if ranking.exclude_bought else "stay candidates"
    rows = [
        [METRICS[name].display, *(score_text(by_system.get(one), METRICS[name].decimals) for one in systems)]
        for name, by_system in shown.items()
    ]
    said = (
        f"The last purchase of {users:,} users that were not trained on, ranked among all items; bought items "
        f"{bought}. *Closed form* is the start of the training, without the LM."
    )
    if any(one.startswith(PERFECT) for one in systems):
        said += " A *perfect reader* knows the synthetic world: the most that anyone can reach."
    return f"{said}\n\n{table(['next item', *systems], rows)}"
