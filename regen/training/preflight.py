"""Checks before any work: refuses a run that its config or data are sure to make fail.

`check_config` runs before any artefact is built, and `check_data` as soon as the prepared tables exist. The schema
checks ranges of single numbers. The LM's weights are not read.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from regen.config.objects import Component, plain
from regen.config.schema import SHARDED, EncodeConfig, TrainConfig
from regen.config.targets import check_target, foreign_targets
from regen.data.prepare import load_tables
from regen.data.splits import check_shares, described, split_narratives
from regen.data.tables import ITEM_FEATURES, NEXT_ITEM, DataError
from regen.embeddings.parts import CONTROLS, OURS, TEXT
from regen.embeddings.sasrec import SASRec, check_environment
from regen.generation.checks import check_decoding, check_option_names

FOUR_BITS = 0.52  # bytes of a 4-bit weight with its share of the scales
EXTRAS = {  # package and extra that a component needs, by its `_target_`
    "lightning.pytorch.loggers.WandbLogger": ("wandb", "wandb"),
    "lightning.pytorch.loggers.TensorBoardLogger": ("tensorboard", "tensorboard"),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", "mlflow"),
    "schedulefree.AdamWScheduleFree": ("schedulefree", "schedulefree"),
    "regen.runtime.shards.RayEngine": ("ray", "cluster"),
    "regen.models.language_model.add_qlora": ("bitsandbytes", "qlora"),
}


def check_config(config: TrainConfig) -> None:
    """Checks the config of a run.

    Raises:
        ValueError: Names the setting, its value, the allowed values and the fix.
    """
    _check_combinations(config)
    _check_packages(config)
    _check_task(config)
    _check_machine(config)
    _check_generation(config)
    _check_language_model(config)


def check_cf(config: EncodeConfig) -> None:
    """Checks that the CF model of a config can be fitted here.

    Raises:
        ValueError: If a setting is wrong, or the environment of SASRec is missing.
    """
    model = config.cf.model.build()
    if isinstance(model, SASRec):
        check_environment(model.python)


def check_data(config: TrainConfig, prepared: Path) -> None:
    """Checks that a run can be trained and scored on the prepared tables in a folder.

    Raises:
        DataError: If the data have no narrative of a chosen feature, or a split has too few users.
    """
    tables = load_tables(prepared)
    if config.task.ranks:
        from regen.data.next_item import purchase_sequences  # imports torch

        history, exclude = config.data.max_history, config.task.exclude_bought
        purchase_sequences(tables, config.split, max_history=history, exclude_bought=exclude)
    told = [name for name in config.feature if name != NEXT_ITEM]
    if not told:
        return
    narratives = tables.narratives.select("user_id", "feature", "text")
    known = narratives["feature"].unique().sort().to_list()
    if not known:
        raise DataError(
            f"These data have no narratives, so there is no {told[0]} to train on. "
            "Choose what writes them: narrator=template or narrator=openai."
        )
    for feature in told:
        if feature not in known:
            raise DataError(f"feature={feature}: these data have no such narrative; they have {', '.join(known)}.")
        if config.split.name == "time" and feature not in ITEM_FEATURES:
            raise DataError(
                f"split=time: a {feature} describes all purchases of a user, so it cannot be split by time. Use one "
                f"of {', '.join(ITEM_FEATURES)}."
            )
    narratives = narratives.with_columns(split_narratives(tables, config.split))
    for feature in told:
        of_feature = narratives.filter(narratives["feature"] == feature)
        empty = len(of_feature)
        of_feature = of_feature.filter(of_feature["text"].is_not_null())
        if of_feature.is_empty():
            raise DataError(f"feature={feature}: all {empty:,} narratives are null.{_why_null(config)}")
        for name, least in (("train", 1), ("validation", 1), ("test", 2)):
            if (count := of_feature.filter(of_feature["split"] == name)["user_id"].n_unique()) < least:
                raise DataError(
                    f"The {name} split has {count} users with a {feature}, and at least {least} are needed: "
                    f"{of_feature['user_id'].n_unique()} users in all, split {described(config.split)}. Use more users "
                    "or another split (split.*)."
                )


def _why_null(config: TrainConfig) -> str:
    """What the user can do about a feature without texts."""
    if config.narrator.name != "template":
        return " Choose another feature, or data that have texts for it."
    return (
        " narrator=template gives a reason only if an earlier purchase has the same item, brand or category. Give the "
        "items a brand or a category, or choose another feature, such as feature=product_endorsement."
    )


def _check_combinations(config: TrainConfig) -> None:
    encoder, trainer = config.encoder, config.trainer
    check_shares(config.split)
    if trainer.deterministic not in (None, True, False, "warn"):
        raise ValueError(f"trainer.deterministic={trainer.deterministic} has to be true, false or warn.")
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
    if config.tuning.name == "qlora" and trainer.strategy == SHARDED:
        raise ValueError(
            "tuning=qlora and trainer=fsdp: layers in 4 bits cannot be split over devices. Use tuning=lora."
        )
    for metric in config.evaluation.metrics.values():
        metric.build()
    check_decoding(config.evaluation, config.engine)


def _check_task(config: TrainConfig) -> None:
    """Refuses settings that do not go together with the task."""
    task, told = f"task={config.task.name}", [name for name in config.feature if name != NEXT_ITEM]
    allowed = {
        "narrate": ("those that are narratives", NEXT_ITEM not in config.feature),
        "recommend": (NEXT_ITEM, not told),
        "converse": (
            f"[{NEXT_ITEM},X], where X is one of {', '.join(ITEM_FEATURES)}",
            NEXT_ITEM in config.feature and len(told) == 1 and told[0] in ITEM_FEATURES,
        ),
    }
    takes, kept = allowed[config.task.name]
    if not kept:
        raise ValueError(f"{task} with feature={','.join(config.feature)}: it takes feature={takes}.")
    if not config.task.ranks:
        if config.data.critiques:
            raise ValueError("data.critiques=true belongs to task=recommend; a narrative is written without one.")
        return
    if config.encoder.name == TEXT:
        raise ValueError(f"{task} reads soft tokens, and encoder=text has none. Choose another encoder.")
    if config.split.name == "time":
        raise ValueError(f"{task} holds out the last purchase of unseen users. Use split=users or split=file.")
    if config.training.narratives_at_validation:
        raise ValueError(f"training.narratives_at_validation: {task} writes no narratives at validation. Set it to 0.")
    if told and config.evaluation.endpoint is not None:
        raise ValueError(f"evaluation.endpoint: {task} writes in this process only. Leave it out.")
    if told and config.engine.target.endswith(".RayEngine"):
        raise ValueError(f"{task} writes in this process only. Use engine=local.")
    if not getattr(get_class(config.adapter.target), "per_interaction", True):
        raise ValueError(
            f"adapter={config.adapter.name} reads the whole history, so a soft token would contain later purchases, "
            f"which {task} has to predict. Use adapter=linear or mlp."
        )


def _check_packages(config: TrainConfig) -> None:
    if "cf" in config.encoder.parts:
        check_cf(config)
    loggers = config.logger.values()
    for node in (*loggers, config.engine, config.optimizer, config.tuning):
        package, extra = EXTRAS.get(node.target, (None, None))
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"{node.target} needs the package {package}. Run: pip install 'regen[{extra}]'")
    for target in foreign_targets(plain(config)):
        check_target(target)
    if any(node.target.endswith("WandbLogger") and not node.options["offline"] for node in loggers):
        _check_wandb_login()


def _check_wandb_login() -> None:
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False):
        raise ValueError(
            "logger=wandb: this machine is not logged in to Weights & Biases. Run `wandb login`, set WANDB_API_KEY, or "
            "use logger.wandb.offline=true."
        )


def _check_machine(config: TrainConfig) -> None:
    import torch

    from regen.runtime.device import ON_CUDA

    if config.trainer.accelerator in ON_CUDA:
        devices = torch.cuda.device_count()
        if devices < config.trainer.devices:
            raise ValueError(
                f"trainer.accelerator={config.trainer.accelerator} trainer.devices={config.trainer.devices}: this "
                f"machine has {devices} CUDA devices. {'' if devices else _why_no_cuda()}Use fewer, or trainer=cpu."
            )
        if config.trainer.precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(
                f"trainer.precision={config.trainer.precision}: {torch.cuda.get_device_name()} has no bfloat16. Use "
                "trainer.precision=32-true."
            )
    if config.evaluation.precision is not None and not torch.cpu._is_vnni_supported():
        raise ValueError("evaluation.precision=int8 needs a CPU with VNNI, which this one lacks. Leave it out.")


def _why_no_cuda() -> str:
    """The likely reason for having no CUDA device, and its fix."""
    import torch

    if torch.version.cuda is None:
        return f"This PyTorch ({torch.__version__}) is built without CUDA: install the build for your CUDA version. "
    return (
        f"PyTorch {torch.__version__} needs a driver for CUDA {torch.version.cuda}: if nvidia-smi shows a GPU, update "
        "its driver. "
    )


def _check_generation(config: TrainConfig) -> None:
    from transformers import GenerationConfig

    options = config.evaluation.generation
    check_option_names(options)
    if "max_new_tokens" not in options:
        raise ValueError("evaluation.generation.max_new_tokens is missing: how many tokens a narrative has at most.")
    try:
        GenerationConfig(**options).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"evaluation.generation: {' '.join(str(error).split())}") from error


def _check_language_model(config: TrainConfig) -> None:
    """Checks prompt lengths, tuning and memory by the LM's config and tokenizer, without its weights."""
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
    _check_memory(config, config.tuning.build(model))


def _check_memory(config: TrainConfig, lm: Any) -> None:
    """Refuses an LM whose weights, gradients and optimizer state do not fit into the GPU's free memory."""
    import torch

    from regen.runtime.device import ON_CUDA

    if config.trainer.accelerator not in ON_CUDA:
        return
    needed = least_memory(config, lm)
    free, whole = torch.cuda.mem_get_info()
    if needed > free:
        raise ValueError(
            f"lm={config.lm.name} tuning={config.tuning.name} needs {needed / 2**30:.1f} GiB for weights, gradients "
            f"and optimizer alone; {free / 2**30:.1f} of {whole / 2**30:.1f} GiB are free on "
            f"cuda:{torch.cuda.current_device()}. Use tuning=lora with trainer.precision=bf16-mixed, tuning=qlora, "
            "trainer=fsdp, or fewer cells side by side (hydra.launcher.n_jobs)."
        )


def least_memory(config: TrainConfig, lm: Any) -> float:
    """Bytes per device of weights, gradients and AdamW's two moments of a tuned LM on the meta device."""
    frozen = 2 if config.trainer.precision == "bf16-mixed" else 4
    narrow: set[int] = set()
    if config.tuning.name == "qlora":
        from regen.models.four_bit import frozen_layers

        narrow = {id(layer.weight) for layer in frozen_layers(lm.get_base_model().get_decoder())}
    total = 0.0
    for parameter in lm.parameters():
        each = 16 if parameter.requires_grad else FOUR_BITS if id(parameter) in narrow else frozen
        total += each * parameter.numel()
    return total / (config.trainer.devices if config.trainer.strategy == SHARDED else 1)
