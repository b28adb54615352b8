"""`config.json` of an exported model: all that it takes to build the model around a base LM again."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from regen.models.language_model import LanguageModel

FORMAT = 1  # of the folder; raise it when older code could not read it
VERSIONED = ("torch", "transformers", "peft")
"""Libraries whose minor versions may change what a model writes; with content, sentence-transformers too."""

SCALE_TOLERANCE = 0.01  # of an embedding norm: bfloat16 moves it by less, another LM by more


@dataclass(frozen=True)
class Spec:
    """What an exported model is.

    Attributes:
        run: Name of the run folder it comes from.
        encoder: Name of the encoder.
        dim: Width of a fused vector; CF comes first in it.
        cf_dim: How many of the fused dimensions are CF.
        embeddings: Configuration of `cf` and `content`, where the encoder has them.
        seed: Of the run.
        adapter: Its class and options.
        lm: What loads the base LM, and its options.
        lm_width: Width of the LM's input embeddings.
        embedding_norm: Mean L2 norm of what the LM embeds its tokens as.
        lm_layers: How many the LM has.
        lm_vocabulary: Rows of its embedding table.
        lm_digest: Of its weights before training.
        tuning: `lora`, `full` or `frozen`.
        features: Of each feature the prompt and whether the final review is withheld.
        max_history: Interactions that are read, the latest ones.
        data: Fingerprints of the artefacts it was trained on, source, vertical and narrator.
        versions: Of the libraries it was trained with.
        format: Of the folder.
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
    format: int = FORMAT

    @property
    def sentence_encoder(self) -> str | None:
        """What reads texts, None for an encoder without content."""
        content = self.embeddings.get("content")
        return None if content is None else str(content["pretrained"])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def check_language_model(self, lm: LanguageModel) -> None:
        """Refuses an LM that the adapter was not trained in front of; warns where only its weights are others.

        Raises:
            ValueError: If its width, depth, vocabulary or the scale of its embeddings is another one.
        """
        trained_on = f"the adapter was trained in front of lm={self.lm['name']}"
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
                f"lm={lm.name} has the shape of the LM that {self.run} was trained in front of, but other weights: "
                "narratives may differ or fail. Load the same revision, not quantized.",
                stacklevel=3,
            )

    def warn_of_versions(self) -> None:
        """Warns of libraries whose minor version is not the one of training."""
        libraries = [*VERSIONED, *(["sentence-transformers"] if self.sentence_encoder is not None else [])]
        other = {
            name: (self.versions[name], metadata.version(name))
            for name in libraries
            if name in self.versions and _minor(self.versions[name]) != _minor(metadata.version(name))
        }
        if other:
            told = ", ".join(f"{name} {was} (here {now})" for name, (was, now) in other.items())
            warnings.warn(f"{self.run} was trained with {told}: its narratives may differ from then.", stacklevel=3)


def read_spec(path: Path) -> Spec:
    """Reads a `config.json`.

    Raises:
        ValueError: If it is of another format.
    """
    try:
        written: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (found := written.get("format")) != FORMAT:
            raise ValueError(f"format {found!r}, and this version of regen reads format {FORMAT}")
        return Spec(**written)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not the configuration of an exported model ({error}). "
            "Export the run again, with this version of regen."
        ) from error


def _minor(version: str) -> tuple[str, ...]:
    """Major and minor number: of "2.13.0+cpu", 2 and 13."""
    return tuple(version.split("+")[0].split(".")[:2])
