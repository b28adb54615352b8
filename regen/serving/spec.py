"""`config.json` of an exported model: what is needed to rebuild it from a base LM."""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from regen.models.language_model import LanguageModel

FORMAT = 1  # version of the folder's format; raise it if older code cannot read a new one
VERSIONED = ("torch", "transformers", "peft")
"""Libraries whose minor versions may change a model's texts; with content, sentence-transformers too."""

SCALE_TOLERANCE = 0.01  # relative difference of embedding norms; bfloat16 changes them by less, another LM by more


@dataclass(frozen=True)
class Ranking:
    """How an exported model ranks items.

    Attributes:
        exclude_bought: Whether bought items are excluded.
        critiques: Sentence encoder of critiques; None if the model reads none.
        narrative_weight: Weight of the narrative in the loss; None if the model only ranks.
    """

    exclude_bought: bool
    critiques: str | None
    narrative_weight: float | None


@dataclass(frozen=True)
class Spec:
    """Specification of an exported model.

    Attributes:
        run: Name of its run folder.
        encoder: Name of the encoder.
        dim: Width of a fused vector; CF comes first.
        cf_dim: Width of the CF part.
        embeddings: Configuration of `cf` and `content`, if the encoder uses them.
        seed: Seed of the run.
        adapter: Class and options of the adapter.
        lm: Function that loads the base LM, and its options.
        lm_width: Width of the LM's input embeddings.
        embedding_norm: Mean L2 norm of the LM's token embeddings.
        lm_layers: Number of layers of the LM.
        lm_vocabulary: Rows of the LM's embedding table.
        lm_digest: Digest of the LM's weights before training.
        tuning: `lora`, `full` or `frozen`.
        features: For each feature, the prompt and whether the final review is withheld.
        max_history: How many of the latest interactions are read.
        data: Fingerprints of the training data, source, vertical and narrator.
        versions: Versions of the libraries at training.
        ranking: How items are ranked; None for narratives of given histories.
        format: Version of the folder's format.
    """

    run: str
    encoder: str
    dim: int
    cf_dim: int
    embeddings: dict[str, dict[str, Any]]
    seed: int
    adapter: dict[str, Any]
    lm: dict[str, Any]
    lm_width: int
    embedding_norm: float
    lm_layers: int
    lm_vocabulary: int
    lm_digest: str
    tuning: str
    features: dict[str, dict[str, Any]]
    max_history: int
    data: dict[str, Any]
    versions: dict[str, str]
    ranking: Ranking | None = None
    format: int = FORMAT

    @property
    def task(self) -> str:
        """`narrate`, `recommend` or `converse`."""
        if self.ranking is None:
            return "narrate"
        return "recommend" if self.ranking.narrative_weight is None else "converse"

    @property
    def learned_positions(self) -> int | None:
        """Number of learned vectors, with `encoder=none`; `converse` has one more, for the item."""
        return self.max_history + (self.task == "converse") if self.encoder == "none" else None

    @property
    def sentence_encoder(self) -> str | None:
        """Name of the sentence encoder; None without content."""
        content = self.embeddings.get("content")
        return None if content is None else str(content["pretrained"])

    def to_json(self) -> str:
        written = dataclasses.asdict(self)
        if self.ranking is None:
            del written["ranking"]  # as in folders of versions that exported narratives only
        return json.dumps(written, indent=2, ensure_ascii=False) + "\n"

    def check_language_model(self, lm: LanguageModel) -> None:
        """Checks that an LM is the one that the adapter was trained with; warns if only its weights differ.

        Raises:
            ValueError: If width, depth, vocabulary or the scale of the embeddings differs.
        """
        trained_on = f"the adapter was trained with lm={self.lm['name']}"
        for what, name, here, there in (
            ("embeddings of width", "width", lm.width, self.lm_width),
            ("a depth of", "depth", lm.layers, self.lm_layers),
            ("a vocabulary of", "vocabulary", lm.vocabulary, self.lm_vocabulary),
        ):
            if here != there:
                raise ValueError(
                    f"lm={lm.name} has {what} {here}, and {trained_on}, whose {name} is {there}. Load that one."
                )
        norm = lm.embedding_norm()
        if abs(norm - self.embedding_norm) > SCALE_TOLERANCE * self.embedding_norm:
            raise ValueError(
                f"lm={lm.name} has embeddings of mean norm {norm:.4g}, and {trained_on}, whose mean norm is "
                f"{self.embedding_norm:.4g} (within {SCALE_TOLERANCE:.0%}). Load that one, at the same revision."
            )
        if lm.weights_digest() != self.lm_digest:
            warnings.warn(
                f"lm={lm.name} has the shape of the LM that {self.run} was trained with, but other weights: "
                "narratives may differ or fail. Load the same revision, not quantized.",
                stacklevel=3,
            )

    def warn_of_versions(self) -> None:
        """Warns if the minor version of a library differs from that at training."""
        embeds = self.sentence_encoder is not None or (self.ranking is not None and self.ranking.critiques is not None)
        libraries = [*VERSIONED, *(["sentence-transformers"] if embeds else [])]
        other = {
            name: (self.versions[name], metadata.version(name))
            for name in libraries
            if name in self.versions and _minor(self.versions[name]) != _minor(metadata.version(name))
        }
        if other:
            told = ", ".join(f"{name} {was} (here {now})" for name, (was, now) in other.items())
            warnings.warn(f"{self.run} was trained with {told}: what it writes or ranks may differ.", stacklevel=3)


def read_spec(path: Path) -> Spec:
    """Reads a `config.json`.

    Raises:
        ValueError: If it cannot be read, or has another format.
    """
    try:
        written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (found := written.get("format")) != FORMAT:
            raise ValueError(f"format {found!r}, and this version of regen reads format {FORMAT}")
        ranking = written.pop("ranking", None)
        return Spec(**written, ranking=None if ranking is None else Ranking(**ranking))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not the configuration of an exported model ({error}). "
            "Export the run again, with this version of regen."
        ) from error


def _minor(version: str) -> tuple[str, ...]:
    """Major and minor version: 2 and 13 of "2.13.0+cpu"."""
    return tuple(version.split("+")[0].split(".")[:2])
