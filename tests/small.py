"""What makes tests quick: a world and an LM that train in a second, and sentence embeddings that need no model."""

import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no VNNI")
SMALL = [
    "source.users=400",
    "source.narrated_users=80",
    "source.items=200",
    "cf.model.factors=16",
    "lm=tiny",
    "lm.width=32",
    "tuning=full",
    "adapter=linear",
    "evaluation.resamples=100",
    "evaluation.generation.max_new_tokens=6",
    "trainer.enable_progress_bar=false",
]


class QuickEncoder:
    """A sentence encoder without weights, as wide as MiniLM: a random vector per text, the same at every call."""

    max_seq_length = None

    def encode(self, texts, **_):
        drawn = [np.random.default_rng(zlib.crc32(text.encode("utf-8", "replace"))).normal(size=384) for text in texts]
        return np.array([vector / np.linalg.norm(vector) for vector in drawn], dtype=np.float32)


@contextmanager
def quick_embeddings():
    """Within it no sentence encoder is loaded, neither for content nor for the similarity."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("regen.embeddings.content.load_sentence_encoder", lambda pretrained: QuickEncoder())
        yield
