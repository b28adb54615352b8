"""The trained weights of an exported folder: adapter and readout, and LoRA in PEFT's format or the fully tuned LM."""

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from regen.generation.lm_check import fast_path_of
from regen.models.adapter import Adapter, LinearAdapter, MLPAdapter, TransformerAdapter
from regen.models.closed_form import ClosedForm
from regen.models.conversation import ConversationLM
from regen.models.language_model import LanguageModel, load_packaged, load_pretrained, load_tiny
from regen.models.next_item import NextItemLM
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.spec import Spec

ADAPTER = "adapter.safetensors"
LORA = "lora"
LM = "lm.safetensors"
OF_LM = "lm."  # prefix of the LM's tensors in `SoftTokenLM.trained_state`

# Classes and functions that a folder may name. A downloaded configuration cannot import or call anything else.
ADAPTERS: dict[str, Callable[..., Adapter]] = {
    f"{of.__module__}.{of.__qualname__}": of for of in (LinearAdapter, MLPAdapter, TransformerAdapter)
}
LANGUAGE_MODELS: dict[str, Callable[..., LanguageModel]] = {
    f"regen.models.language_model.{name}": load
    for name, load in (
        ("load_packaged", load_packaged),
        ("load_pretrained", load_pretrained),
        ("load_tiny", load_tiny),
    )
}


def save_weights(model: SoftTokenLM, folder: Path, *, base_model: str) -> None:
    """Writes the trained tensors, without frozen ones.

    Args:
        model: The trained model.
        folder: An existing folder.
        base_model: Name of the base LM in PEFT's configuration.
    """
    from peft import PeftModel, get_peft_model_state_dict

    state = {name: tensor.contiguous() for name, tensor in model.trained_state().items()}
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(OF_LM)}, folder / ADAPTER)
    if isinstance(model.lm, PeftModel):
        lora = get_peft_model_state_dict(model.lm, save_embedding_layers=False)
        (folder / LORA).mkdir()
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in lora.items()},
            folder / LORA / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config = copy.copy(model.lm.peft_config["default"])
        config.base_model_name_or_path, config.inference_mode = base_model, True
        config.save_pretrained(folder / LORA)
    elif tuned := {name: tensor for name, tensor in state.items() if name.startswith(OF_LM)}:
        save_file(tuned, folder / LM)


def load_language_model(spec: Spec, lm: LanguageModel | str | None) -> LanguageModel:
    """Loads the base LM of a specification, or checks the given one against it.

    Args:
        spec: Specification of the exported model.
        lm: A loaded LM, a folder or hub id, or None for the one that the specification names.

    Raises:
        ValueError: If it cannot be loaded, or is not the one that the adapter was trained with.
    """
    if isinstance(lm, LanguageModel):
        loaded = lm
    elif lm is not None:
        loaded = load_pretrained(lm, pretrained=lm)
    else:
        options = dict(spec.lm)
        load = _known(LANGUAGE_MODELS, options.pop("_target_"), "lm", "Give the LM yourself: lm=…")
        loaded = load(options.pop("name"), **options)
    spec.check_language_model(loaded)
    return loaded


def load_weights(
    spec: Spec,
    lm: LanguageModel,
    folder: Path,
    *,
    adapters: Mapping[str, Callable[..., Adapter]],
    form: ClosedForm | None = None,
) -> SoftTokenLM:
    """Loads the model of an exported folder, in evaluation mode.

    Args:
        spec: Specification in the folder.
        lm: The base LM; it is not changed.
        folder: Folder with a checked manifest.
        adapters: Additional adapter classes, by their name in the specification.
        form: The closed form of a recommender, with its catalogue.

    Raises:
        ValueError: If the adapter's class is unknown, or tensors do not fit.
    """
    state = load_file(folder / ADAPTER)
    if spec.tuning == "full":
        state |= load_file(folder / LM)
    base = lm.working_copy(trainable=spec.tuning == "full").model
    options = dict(spec.adapter)
    target = options.pop("_target_")
    make = _known({**ADAPTERS, **adapters}, target, "adapter", f"Give its class yourself: adapters={{{target!r}: …}}")
    model = _class_of(spec, form)(
        _with_lora(base, folder / LORA) if spec.tuning == "lora" else base,
        make(spec.dim, lm.width, **options),
        bos_token_id=lm.tokenizer.bos_token_id,
        learned_positions=spec.learned_positions,
        fast_path=fast_path_of(lm),
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state or not name.startswith(OF_LM))
    try:
        model.load_trained_state(state)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return model.eval()


def _class_of(spec: Spec, form: ClosedForm | None) -> Callable[..., SoftTokenLM]:
    """The model's class, with the arguments that only recommenders have."""
    if spec.ranking is None:
        return SoftTokenLM
    assert form is not None
    catalogue: dict[str, Any] = {
        "items": form.items,
        "bias": form.bias,
        "exclude_bought": spec.ranking.exclude_bought,
    }
    if spec.ranking.narrative_weight is None:
        return partial(NextItemLM, **catalogue)
    return partial(ConversationLM, **catalogue, weight=spec.ranking.narrative_weight)


def _with_lora(base: Any, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():  # peft reads a deprecated property of transformers
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            return PeftModel.from_pretrained(base, folder)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{folder}: does not fit the base LM ({str(error).splitlines()[0]}).") from error


def _known(known: Mapping[str, Callable[..., Any]], target: str, what: str, fix: str) -> Callable[..., Any]:
    if target not in known:
        raise ValueError(
            f"{what} {target!r} is none of regen's ({', '.join(known)}), and other code is not imported. {fix}"
        )
    return known[target]
