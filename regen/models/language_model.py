"""Loading and tuning of language models (paper 4.2).

A loaded model is shared by all runs in the process and never changed: each run tunes a copy of the module tree, which
shares the frozen tensors.
"""

import copy
import functools
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from regen.models.four_bit import is_four_bits, to_four_bits
from regen.models.packaged import packaged_folder
from regen.runtime.console import without_loading_bar
from regen.storage.identity import files_state, lm_weights

DIGESTED = 256  # values of each parameter in `weights_digest`


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: Its name in tables and checkpoints.
        model: The Hugging Face causal LM.
        tokenizer: Its tokenizer, with a padding token.
    """

    name: str
    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Width of the input embeddings, H."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: rows of the input embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def window(self) -> int:
        """Largest number of positions that the LM reads."""
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 30))

    @torch.no_grad()
    def embedding_norm(self) -> float:
        """Mean L2 norm of the input embeddings of all tokens.

        It is that of the module's output, because some LMs (Gemma) scale the weight inside the module.
        """
        embed = self.model.get_input_embeddings()
        chunks = torch.arange(embed.weight.shape[0], device=embed.weight.device).chunk(8)
        return float(torch.cat([embed(chunk).float().norm(dim=-1) for chunk in chunks]).mean())

    @torch.no_grad()
    def mean_embeddings(self, texts: Sequence[Any]) -> Float[Tensor, "texts lm_dim"]:
        """Mean input embedding of each text, from its token ids (a list or an array)."""
        embed = self.model.get_input_embeddings()
        return torch.stack([embed(torch.as_tensor(ids)).float().mean(dim=0) for ids in texts])

    @torch.no_grad()
    def weights_digest(self) -> str:
        """Digest of the first values of every parameter, equal for weights in float32 and in bfloat16."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            first = parameter.flatten()[:DIGESTED].to("cpu", torch.bfloat16)
            digest.update(first.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def working_copy(self, *, trainable: bool) -> "LanguageModel":
        """A copy of the module tree; the tensors are copied if `trainable`, otherwise shared."""
        shared: dict[int, Any] = {}
        if not trainable:
            shared = {id(tensor): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        return LanguageModel(self.name, copy.deepcopy(self.model, memo=shared), self.tokenizer)


@functools.cache
def load_packaged(name: str, *, package: str) -> LanguageModel:
    """Loads a language model from the GGUF weights in an installed Python package.

    Args:
        name: Its name in tables and checkpoints.
        package: See `packaged_folder`.

    Raises:
        ValueError: If that package is not installed.
    """
    return _load_folder(name, str(packaged_folder(package)), revision=None, state=())


def load_pretrained(name: str, *, pretrained: str, revision: str | None = None) -> LanguageModel:
    """Loads a Hugging Face causal LM by folder or hub id, once per process and again if the folder has changed.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        return _load_folder(name, pretrained, revision=revision, state=files_state(pretrained))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"lm.pretrained={pretrained}: nothing to load there ({str(error).splitlines()[0]}). "
            "Give a save_pretrained folder, or a hub id and a network."
        ) from error


@functools.cache
def load_tiny(name: str, *, width: int, layers: int, heads: int, seed: int) -> LanguageModel:
    """Makes a small random Llama with MiniLM's uncased word pieces, for tests."""
    from regen.embeddings.content import minilm_folder

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguageModel(name, model.eval(), tokenizer)


def skeleton(options: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """The LM of a config's `lm` on the meta device, and its tokenizer.

    Args:
        options: The node `lm` of the config.

    Raises:
        ValueError: If the LM is not found, or its tokenizer cannot be loaded.
    """
    lm_weights(options)  # raises if it is not found
    if package := options.get("package"):
        folder, revision = str(packaged_folder(package)), None
    elif "pretrained" in options:
        folder, revision = options["pretrained"], options.get("revision")
    else:
        lm = instantiate({**options, "_convert_": "all"})
        return copy.deepcopy(lm.model).to("meta"), lm.tokenizer
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, revision=revision))
    try:
        return model, AutoTokenizer.from_pretrained(folder, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].strip(" :")
        raise ValueError(
            f"lm.pretrained={folder}: there is no tokenizer that can be loaded ({reason}). "
            "Save the LM's tokenizer into the same folder with save_pretrained."
        ) from error


def freeze(model: nn.Module) -> nn.Module:
    """`tuning=frozen`: freezes the whole LM. The paper does not say what it trains (docs/log.md)."""
    return model.requires_grad_(False)


def tune_fully(model: nn.Module) -> nn.Module:
    """`tuning=full`: makes every weight of the LM trainable."""
    return model.requires_grad_(True)


def add_lora(
    model: nn.Module, *, rank: int, alpha: float, dropout: float, target_modules: Sequence[str] | str | None = None
) -> nn.Module:
    """`tuning=lora`: adds trainable low-rank updates to linear layers of the frozen LM (Hu et al. 2021, by PEFT).

    Args:
        model: A Hugging Face causal LM.
        rank: Rank of the updates.
        alpha: Updates are multiplied by `alpha / rank`.
        dropout: Share of an update's inputs that is dropped in training.
        target_modules: Names of the layers, or `all-linear`. None takes PEFT's default for the architecture (`q_proj`
            and `v_proj` for a Llama), or `all-linear` if it has none.

    Raises:
        ValueError: If the LM has no layer of such a name, or PEFT cannot tune it.
    """
    from peft import LoraConfig, get_peft_model

    layers = _linear_layers(model)
    targets = _lora_targets(model, layers) if target_modules is None else target_modules
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 and its kind
    )
    try:
        with warnings.catch_warnings():  # peft asks transformers for a property by its old name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(
            f"tuning.target_modules={targets}: {error} Name some of this LM's linear layers ({', '.join(layers)}), or "
            "all-linear; null takes PEFT's default."
        ) from error


def add_qlora(
    model: Any, *, rank: int, alpha: float, dropout: float, target_modules: Sequence[str] | str | None = None
) -> nn.Module:
    """`tuning=qlora`: `add_lora` with the frozen linear layers in 4 bits. The arguments are those of `add_lora`."""
    tuned: Any = add_lora(model, rank=rank, alpha=alpha, dropout=dropout, target_modules=target_modules)
    to_four_bits(tuned.get_base_model().get_decoder())
    return cast(nn.Module, tuned)


def _lora_targets(model: Any, layers: Sequence[str]) -> Sequence[str] | str:
    """PEFT's default layers for the architecture if the LM has them; otherwise all linear layers."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_ARCHITECTURE

    names = BY_ARCHITECTURE.get(model.config.model_type)
    known = isinstance(names, list) and set(names) <= set(layers)
    return names if known else "all-linear"


def _linear_layers(model: nn.Module) -> list[str]:
    """Distinct names of the linear layers without their path, in the order of the LM."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear))


def hold_frozen_in_bfloat16(model: nn.Module) -> None:
    """Replaces frozen parameters by bfloat16 copies; 4-bit layers stay and compute in bfloat16.

    Trainable parameters stay in float32, because small steps are lost in bfloat16.
    """
    narrow: dict[int, nn.Parameter] = {}  # by the id of the old parameter, so that tied weights stay tied
    for module in model.modules():
        if is_four_bits(module):
            vars(module)["compute_dtype"] = torch.bfloat16
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                new = narrow.setdefault(
                    id(parameter), nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
                )
                setattr(module, name, new)


@functools.cache
def _load_folder(name: str, folder: str, *, revision: str | None, state: tuple[Any, ...]) -> LanguageModel:
    with without_loading_bar(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, revision=revision, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LanguageModel(name, model.eval(), tokenizer)
