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

from omegaconf import DictConfig, OmegaConf

from regen.data.tables import DataError, nearest

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


def check_config(cfg: DictConfig) -> None:
    """Refuses a cell of `train.py` that is sure to fail.

    Args:
        cfg: The composed config.

    Raises:
        ValueError: Names the setting, its value, what is allowed and the fix.
    """
    _check_numbers(cfg)
    _check_combinations(cfg)
    _check_packages(cfg)
    _check_machine(cfg)
    _check_generation(cfg)
    _check_language_model(cfg)


def check_data(cfg: DictConfig, prepared: Path) -> None:
    """Refuses data on which this cell cannot be trained or scored.

    Args:
        cfg: The composed config.
        prepared: Folder of the prepared tables.

    Raises:
        DataError: If the data have no narrative of a chosen feature, or a split has too few users.
    """
    from regen.data.prepare import load_tables
    from regen.embeddings.encode import Split

    split = Split(**OmegaConf.to_container(cfg.split))  # type: ignore[arg-type]
    narratives = load_tables(prepared).narratives.select("user_id", "feature")
    known = narratives["feature"].unique().sort().to_list()
    if not known:
        raise DataError(
            f"These data have no narratives, so there is no {next(iter(cfg.feature))} to train on. "
            "Choose what writes them: narrator=template or narrator=openai."
        )
    for feature in cfg.feature:
        if feature not in known:
            raise DataError(f"feature={feature}: these data have no such narrative; they have {', '.join(known)}.")
        users = narratives.filter(narratives["feature"] == feature)["user_id"].unique()
        names = split.of(users)
        for name, least in (("train", 1), ("validation", 1), ("test", 2)):
            if (count := int((names == name).sum())) < least:
                raise DataError(
                    f"The {name} split has {count} users with a {feature}, and at least {least} are needed: "
                    f"{len(users)} users in all, shares validation={split.validation}, test={split.test}. Use more "
                    "users or other shares (split.*)."
                )


def _check_numbers(cfg: DictConfig) -> None:
    for key, least in AT_LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not value >= least:
            raise ValueError(f"{key}={value} has to be at least {least}.")
    for key in ABOVE_ZERO:
        value = OmegaConf.select(cfg, key)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{key}={value} has to be above 0.")
    for key in SHARES:
        value = OmegaConf.select(cfg, key)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{key}={value} is a share: it has to be 0 or more and less than 1.")
    if cfg.split.validation + cfg.split.test >= 1:
        raise ValueError(
            f"split.validation={cfg.split.validation} and split.test={cfg.split.test} leave no user to train on. "
            "Together they have to be less than 1."
        )
    if cfg.trainer.max_steps != -1 and cfg.trainer.max_steps < 1:
        raise ValueError(f"trainer.max_steps={cfg.trainer.max_steps} has to be at least 1; -1 is no limit.")


def _check_combinations(cfg: DictConfig) -> None:
    from regen.pipeline import TEXT, encoder_parts

    encoder_parts(cfg.encoder.name)
    if cfg.encoder.name == TEXT and cfg.tuning.name == "frozen":
        raise ValueError("encoder=text tuning=frozen leaves nothing to train. Use tuning=lora or full.")
    if cfg.evaluation.endpoint is not None:
        if cfg.engine._target_ == "regen.runtime.shards.RayEngine":
            raise ValueError(
                f"evaluation.endpoint={cfg.evaluation.endpoint} and engine=ray would both generate. Leave one out."
            )
        if cfg.evaluation.precision is not None:
            raise ValueError(
                f"evaluation.endpoint={cfg.evaluation.endpoint} decodes with its own weights, which "
                "evaluation.precision=int8 does not reach. Leave one of them out."
            )
        if others := sorted(_beyond_greedy(cfg)):
            raise ValueError(
                f"evaluation.endpoint={cfg.evaluation.endpoint} decodes greedily, and evaluation.generation asks for "
                f"{', '.join(others)}. Leave one of them out."
            )


def _beyond_greedy(cfg: DictConfig) -> set[str]:
    generation = cfg.evaluation.generation
    asked = {str(name) for name in generation} - {"max_new_tokens", "do_sample"}
    return asked | ({"do_sample"} if generation.get("do_sample") else set())


def _check_packages(cfg: DictConfig) -> None:
    for node in (cfg.logger, cfg.engine):
        package, extra = EXTRAS.get(node._target_, (None, None))
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"{node._target_} needs the package {package}. Run: pip install 'regen[{extra}]'")
    if cfg.logger._target_.endswith("WandbLogger") and not cfg.logger.offline:
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


def _check_machine(cfg: DictConfig) -> None:
    import torch

    if cfg.trainer.accelerator in ("gpu", "cuda"):
        devices = torch.cuda.device_count()
        if devices < cfg.trainer.devices:
            raise ValueError(
                f"trainer.accelerator={cfg.trainer.accelerator} trainer.devices={cfg.trainer.devices}: this machine "
                f"has {devices} CUDA devices. Use fewer, or trainer=cpu."
            )
    if cfg.evaluation.precision is not None and not torch.cpu._is_vnni_supported():
        raise ValueError("evaluation.precision=int8 needs a CPU with VNNI, which this one lacks. Leave it out.")


def _check_generation(cfg: DictConfig) -> None:
    from transformers import GenerationConfig

    options: Any = OmegaConf.to_container(cfg.evaluation.generation, resolve=True)
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


def _check_language_model(cfg: DictConfig) -> None:
    """The LM's config, tokenizer and layer names, without its weights."""
    from regen.models.language_model import skeleton
    from regen.pipeline import plain
    from regen.training.assembly import instantiate_own

    model, tokenizer = skeleton(plain(cfg.lm))
    window = int(getattr(model.config, "max_position_embeddings", 1 << 30))
    prompts: Mapping[str, Any] = cfg.feature
    for name, feature in prompts.items():
        prompt = len(tokenizer(feature.prompt, add_special_tokens=False)["input_ids"])
        if prompt + 3 > window:  # a first token, one of the history and one of the narrative
            raise ValueError(
                f"feature.{name}.prompt has {prompt} tokens, and lm={cfg.lm.name} reads {window} positions, of which "
                "history and narrative need some. Shorten the prompt."
            )
        if prompt + 2 + (most := cfg.evaluation.generation.max_new_tokens) > window:
            raise ValueError(
                f"evaluation.generation.max_new_tokens={most} and the {prompt} tokens of feature.{name}.prompt do not "
                f"fit into the {window} positions that lm={cfg.lm.name} reads. Lower max_new_tokens."
            )
    instantiate_own(cfg.tuning, model)
