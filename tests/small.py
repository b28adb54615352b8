"""What makes tests quick: a world and an LM that train in a second, and sentence embeddings that need no model."""

import hashlib
from contextlib import contextmanager

import numpy as np
import pytest

SMALL = [
    "source.users=400",
    "source.narrated_users=80",
    "source.items=200",
    "cf.model.factors=16",
    "cf.model.iterations=3",
    "lm=tiny",
    "lm.width=32",
    "tuning=full",
    "adapter=linear",
    "evaluation.resamples=100",
    "evaluation.generation.max_new_tokens=6",
    "trainer.enable_progress_bar=false",
]


def hashed_embeddings(texts, *, pretrained="", batch_size=64, progress=False):
    """Like `embed_texts`, but a text's vector is drawn by its hash: equal texts are equal, others are not alike."""
    vectors = np.zeros((len(texts), 16), dtype=np.float32)
    for row, text in enumerate(texts):
        if text.strip():
            digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
            vectors[row] = np.random.default_rng(int.from_bytes(digest[:8])).normal(size=16)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@contextmanager
def quick_embeddings():
    """Within it no sentence encoder is loaded, neither for content nor for the similarity."""
    with pytest.MonkeyPatch.context() as patched:
        for user in ("regen.embeddings.encode_content", "regen.evaluation.evaluate"):
            patched.setattr(f"{user}.embed_texts", hashed_embeddings)
        yield
