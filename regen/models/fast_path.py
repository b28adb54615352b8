"""Which parts of our own, faster way through a language model hold for an architecture.

Our attention, our head loss and our row decoder are right for LMs in which every layer attends through
`regen.models.attention.attend` and keeps nothing but keys and values between steps: Llama, Mistral, Qwen 2 and 3,
SmolLM, Gemma 3, OLMo, Granite, Phi-3, GPT-2 and their kind. No list decides this. `regen.generation.lm_check` compares
both ways on each LM, and what differs is left to `transformers`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FastPath:
    """Where our own code replaces that of `transformers`.

    Attributes:
        attention: Our attention, in training and in decoding.
        head: Our head loss, which never holds the logits of a whole batch.
        rows: The row decoder; without it, `generate` writes the texts.
        padding: Whether `generate` may be given padded rows; without it, rows are written one at a time.
        reason: What differs, for the log.
    """

    attention: bool = True
    head: bool = True
    rows: bool = True
    padding: bool = True
    reason: str = ""
