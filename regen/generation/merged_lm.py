"""Writes a tuned LM, with LoRA merged into its weights, as a folder that any server can load."""

import copy
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from regen.data.download import user_cache
from regen.models.four_bit import from_four_bits
from regen.models.soft_token_lm import SoftTokenLM
from regen.storage.artefacts import appearing_whole

logger = logging.getLogger(__name__)


def merged_folder(model: SoftTokenLM, tokenizer: Any, *, name: str) -> Path:
    """The `save_pretrained` folder of a model's LM in the user cache; the first call writes it.

    The folder's name ends with a fingerprint of all weights, so the name that a server reports identifies the weights.

    Args:
        model: The trained model; it is not changed.
        tokenizer: The LM's tokenizer.
        name: Start of the folder's name.
    """
    folder = user_cache() / "lm" / f"{name}-merged-{weights_fingerprint(model.lm)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _write(model, tokenizer, folder)
    return folder


def weights_fingerprint(lm: Any) -> str:
    """Twelve hex digits of a hash over names and values of all tensors."""
    digest = hashlib.sha256()
    for key, tensor in sorted(lm.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _write(model: SoftTokenLM, tokenizer: Any, folder: Path) -> None:
    from peft import PeftModel

    logger.info("Writing the LM with its LoRA merged into %s.", folder)
    lm = model.lm
    if isinstance(lm, PeftModel):
        lm = copy.deepcopy(lm)
        from_four_bits(lm)
        lm = lm.merge_and_unload()
    with appearing_whole(folder) as partial:
        lm.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
