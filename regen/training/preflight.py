"""What is sure to fail, refused before any work: the one place for checks that need only the config or the data.

`check_config` runs before any artefact is built, `check_data` as soon as the prepared tables are there, before anything
is encoded or trained. Numbers, combinations and this machine are checked first, then the language model's config. Its
weights are not read.
"""

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regen.config.objects import Component
from regen.config.schema import TrainConfig
from regen.data.tables import DataError, nearest
from regen.embeddings.parts import CONTROLS, OURS, TEXT

AT_LEAST = {  # the least value of a setting; null is fine where the schema allows it
    "cf.alpha": 0,
    "content.batch_size": 1,
    "data.max_history": 1,
    "data.max_narrative_tokens": 1,
    "encoder.max_tokens": 1,
    "engine.asking": 1,
    "engine.cpus": 1,
    "engine.interactions": 1,
    "engine.narratives": 1,
    "engine.requests": 1,
    "evaluation.batch_size": 1,
    "evaluation.generation.max_new_tokens": 1,
    "evaluation.resamples": 100,
    "training.batch_size": 1,
    "training.checkpoint_seconds": 0,
    "training.epochs": 1,
    "training.gradient_clip": 0,
    "training.patience": 1,
    "training.validations_per_epoch": 1,
    "training.weight_decay": 0,
    "trainer.devices": 1,
    "trainer.num_workers": 0,
    "tuning.lr": 0,
    "tuning.rank": 1,
}
ABOVE_ZERO = ("adapter.lr", "adapter.ridge", "split.test", "split.validation", "tuning.alpha")
SHARES = ("split.test", "split.validation", "training.warmup_share", "tuning.dropout")  # 0 to less than 1
EXTRAS = {  # packages that a choice needs, by the start of a `_target_`
    "lightning.pytorch.loggers.WandbLogger": ("wandb", "wandb"),
    "lightning.pytorch.loggers.TensorBoardLogger": ("tensorboard", "tensorboard"),
    "regen.runtime.shards.RayEngine": ("ray", "cluster"),
}


def check_config(config: TrainConfig) -> None:
    """Refuses a cell of `train.py` that is sure to fail.

    Args:
        config: The run's config.

    Raises:
        ValueError: Names the setting, its value, what is allowed and the fix.
    """
    _check_numbers(config)
    _check_combinations(config)
    _check_packages(config)
    _check_machine(config)
    _check_generation(config)
    _check_language_model(config)


def check_data(config: TrainConfig, prepared: Path) -> None:
    """Refuses data on which this cell cannot be trained or scored.

    Args:
        config: The run's config.
        prepared: Folder of the prepared tables.

    Raises:
        DataError: If the data have no narrative of a chosen feature, or a split has too few users.
    """
    from regen.data.prepare import load_tables
    from regen.data.splits import split_of

    split = config.split
    narratives = load_tables(prepared).narratives.select("user_id", "feature")
    known = narratives["feature"].unique().sort().to_list()
    if not known:
        raise DataError(
            f"These data have no narratives, so there is no {next(iter(config.feature))} to train on. "
            "Choose what writes them: narrator=template or narrator=openai."
        )
    for feature in config.feature:
        if feature not in known:
            raise DataError(f"feature={feature}: these data have no such narrative; they have {', '.join(known)}.")
        users = narratives.filter(narratives["feature"] == feature)["user_id"].unique()
        names = split_of(users, split)
        for name, least in (("train", 1), ("validation", 1), ("test", 2)):
            if (count := int((names == name).sum())) < least:
                raise DataError(
                    f"The {name} split has {count} users with a {feature}, and at least {least} are needed: "
                    f"{len(users)} users in all, shares validation={split.validation}, test={split.test}. Use more "
                    "users or other shares (split.*)."
                )


def _check_numbers(config: TrainConfig) -> None:
    for key, least in AT_LEAST.items():
        value = _value(config, key)
        if value is not None and not value >= least:
            raise ValueError(f"{key}={value} has to be at least {least}.")
    for key in ABOVE_ZERO:
        value = _value(config, key)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{key}={value} has to be above 0.")
    for key in SHARES:
        value = _value(config, key)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{key}={value} is a share: it has to be 0 or more and less than 1.")
    if config.split.validation + config.split.test >= 1:
        raise ValueError(
            f"split.validation={config.split.validation} and split.test={config.split.test} leave no user to train on. "
            "Together they have to be less than 1."
        )
    if config.trainer.max_steps != -1 and config.trainer.max_steps < 1:
        raise ValueError(f"trainer.max_steps={config.trainer.max_steps} has to be at least 1; -1 is no limit.")


def _value(config: TrainConfig, key: str) -> Any:
    """The value of a dotted key; None where this config has no such key."""
    value: Any = config
    for name in key.split("."):
        if isinstance(value, Component):
            value = value.node.get(name)
        else:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def _check_combinations(config: TrainConfig) -> None:
    encoder = config.encoder
    if not encoder.parts and encoder.name not in (*CONTROLS, TEXT):
        raise ValueError(
            f"encoder.name={encoder.name!r} has no parts and is none of {', '.join([*CONTROLS, TEXT])}. Set "
            "encoder.parts, for example to [cf, content]."
        )
    for entry in encoder.parts:
        if not entry.name if isinstance(entry, Component) else entry not in OURS:
            raise ValueError(
                f"encoder.parts has {entry}. A part is {' or '.join(OURS)}, or a node with _target_ and name."
            )
    for key, needs in (("dim", CONTROLS), ("max_tokens", (TEXT,))):
        if (getattr(encoder, key) is not None) != (encoder.name in needs):
            raise ValueError(
                f"encoder={encoder.name} with encoder.{key}={getattr(encoder, key)}: encoder.{key} belongs to "
                f"encoder={', '.join(needs)}, which need it."
            )
    if config.encoder.name == TEXT and config.tuning.name == "frozen":
        raise ValueError("encoder=text tuning=frozen leaves nothing to train. Use tuning=lora or full.")
    for metric in config.evaluation.metrics.values():
        metric.build()
    if config.evaluation.endpoint is not None:
        if config.engine.target == "regen.runtime.shards.RayEngine":
            raise ValueError(
                f"evaluation.endpoint={config.evaluation.endpoint} and engine=ray would both generate. Leave one out."
            )
        if config.evaluation.precision is not None:
            raise ValueError(
                f"evaluation.endpoint={config.evaluation.endpoint} decodes with its own weights, which "
                "evaluation.precision=int8 does not reach. Leave one of them out."
            )
        if others := sorted(_beyond_greedy(config)):
            raise ValueError(
                f"evaluation.endpoint={config.evaluation.endpoint} decodes greedily, and evaluation.generation asks "
                f"for {', '.join(others)}. Leave one of them out."
            )


def _beyond_greedy(config: TrainConfig) -> set[str]:
    generation = config.evaluation.generation
    asked = {str(name) for name in generation} - {"max_new_tokens", "do_sample"}
    return asked | ({"do_sample"} if generation.get("do_sample") else set())


def _check_packages(config: TrainConfig) -> None:
    for node in (config.logger, config.engine):
        package, extra = EXTRAS.get(node.target, (None, None))
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"{node.target} needs the package {package}. Run: pip install 'regen[{extra}]'")
    if config.logger.target.endswith("WandbLogger") and not config.logger.options["offline"]:
        _check_wandb_login()


def _check_wandb_login() -> None:
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False):
        raise ValueError(
            "logger=wandb: this machine is not logged in to Weights & Biases. Run `wandb login`, set WANDB_API_KEY, or "
            "use logger.offline=true."
        )


def _check_machine(config: TrainConfig) -> None:
    import torch

    if config.trainer.accelerator in ("gpu", "cuda"):
        devices = torch.cuda.device_count()
        if devices < config.trainer.devices:
            raise ValueError(
                f"trainer.accelerator={config.trainer.accelerator} trainer.devices={config.trainer.devices}: this "
                f"machine has {devices} CUDA devices. Use fewer, or trainer=cpu."
            )
    if config.evaluation.precision is not None and not torch.cpu._is_vnni_supported():
        raise ValueError("evaluation.precision=int8 needs a CPU with VNNI, which this one lacks. Leave it out.")


def _check_generation(config: TrainConfig) -> None:
    from transformers import GenerationConfig

    options = config.evaluation.generation
    known = GenerationConfig().to_dict()
    for name in options:
        if name not in known:
            hint = nearest(name, sorted(known)).partition("Known:")[0]
            raise ValueError(
                f"evaluation.generation.{name}: transformers' GenerationConfig has no such option. {hint}".rstrip()
            )
    if "max_new_tokens" not in options:
        raise ValueError("evaluation.generation.max_new_tokens is missing: how many tokens a narrative has at most.")
    try:
        GenerationConfig(**options).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"evaluation.generation: {' '.join(str(error).split())}") from error


def _check_language_model(config: TrainConfig) -> None:
    """The LM's config, tokenizer and layer names, without its weights."""
    from regen.models.language_model import skeleton

    model, tokenizer = skeleton(config.lm.node)
    window = int(getattr(model.config, "max_position_embeddings", 1 << 30))
    for name, feature in config.feature.items():
        prompt = len(tokenizer(feature.prompt, add_special_tokens=False)["input_ids"])
        if prompt + 3 > window:  # a first token, one of the history and one of the narrative
            raise ValueError(
                f"feature.{name}.prompt has {prompt} tokens, and lm={config.lm.name} reads {window} positions, of "
                "which history and narrative need some. Shorten the prompt."
            )
        if prompt + 2 + (most := config.evaluation.generation["max_new_tokens"]) > window:
            raise ValueError(
                f"evaluation.generation.max_new_tokens={most} and the {prompt} tokens of feature.{name}.prompt do not "
                f"fit into the {window} positions that lm={config.lm.name} reads. Lower max_new_tokens."
            )
    config.tuning.build(model)
