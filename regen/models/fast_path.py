"""Which parts of regen's own, faster code are used for a language model.

The own attention, head loss and row decoder are correct for LMs whose layers all attend through
`regen.models.attention.attend` and cache nothing but keys and values, such as Llama, Mistral, Qwen 2 and 3, SmolLM,
Gemma 3, OLMo, Granite, Phi-3 and GPT-2. `regen.generation.lm_check` compares them with `transformers` on each LM; parts
whose results differ are left to `transformers`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FastPath:
    """Where regen's code replaces that of `transformers`.

    Attributes:
        attention: Own attention, in training and decoding.
        head: Own head loss, which never holds the logits of a whole batch.
        rows: Own row decoder; otherwise `generate` writes the texts.
        padding: Whether `generate` handles padded rows correctly; otherwise it gets one row at a time.
        reason: What differs, for the log.
    """

    attention: bool = True
    head: bool = True
    rows: bool = True
    padding: bool = True
    reason: str = ""
