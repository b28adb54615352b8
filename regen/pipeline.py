"""From a composed config to the artefacts of the stages: the one place where config meets the data's way."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from regen.data.prepare import item_rows, load_tables, prepare
from regen.embeddings import fusion
from regen.embeddings.encode import Split, encode_cf, load_cf
from regen.embeddings.encode_content import encode_content, load_content
from regen.runtime.shards import HERE, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact

if TYPE_CHECKING:
    from regen.narratives.narrate import Narrator
    from regen.narratives.rate import Rater

ENCODER_PARTS = {"both": ("cf", "content"), "cf": ("cf",), "content": ("content",)}
HISTORY = 50  # purchases that a rater reads (paper 3.2)
CONTROLS = ("none", "random", "noise")
TEXT = "text"  # the history as words in the prompt


def plain(node: Any) -> dict[str, Any]:
    """A config node as plain JSON types, enums by name."""
    container = OmegaConf.to_container(node, resolve=True, throw_on_missing=True, enum_to_str=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def instantiate(node: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Builds the object that a config node's `_target_` names; lists and mappings reach it as plain Python.

    Raises:
        ValueError: What the object itself raises, without Hydra's words around it.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate({**node, "_convert_": "all"}, *args, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def prepared_artefact(cfg: DictConfig, *, force: bool = False) -> Artefact:
    """Stage `prepare` of a config."""
    config = plain(cfg.source)
    return prepare(instantiate(config), config, root=Path(cfg.paths.data_dir), force=force)


def data_artefact(cfg: DictConfig, *, force: bool = False) -> Artefact:
    """The prepared data with narratives of the config's narrator: the source's own, or newly written ones."""
    prepared = prepared_artefact(cfg)
    if cfg.narrator.name == "source":
        return prepared
    from regen.narratives.narrate import narrate

    return narrate(
        build_narrator(cfg),
        prepared=prepared,
        max_history=cfg.narrator.max_history,
        users=cfg.narrator.users,
        root=Path(cfg.paths.data_dir),
        force=force,
    )


def build_narrator(cfg: DictConfig) -> "Narrator":
    """What `narrator` names.

    Raises:
        ValueError: If there is no such narrator, or its endpoint cannot be used.
    """
    from regen.narratives.narrate import OpenAINarrator, TemplateNarrator

    name = cfg.narrator.name
    if name == "template":
        return TemplateNarrator()
    if name == "openai":
        parts = endpoint_parts(plain(cfg.narrator), max_cost=cfg.max_cost, where="narrator")
        return OpenAINarrator(**parts, engine=build_engine(cfg))
    raise ValueError(f"narrator={name}: it writes nothing. Choose template or openai.")


def build_raters(cfg: DictConfig) -> "list[Rater]":
    """The raters of the config, by name."""
    from regen.narratives.rate import Rater

    return [
        Rater(name, **endpoint_parts(options, max_cost=cfg.max_cost, where=f"rater.{name}"))
        for name, options in plain(cfg.rater).items()
    ]


def endpoint_parts(options: Mapping[str, Any], *, max_cost: float | None, where: str) -> dict[str, Any]:
    """Endpoint, ledger and limits of a `narrator` or `rater` node, by the names of a narrator's arguments.

    Raises:
        ValueError: If a setting cannot be used; the message has the config's key.
    """
    from regen.narratives.endpoint import Endpoint, Price, Sampling
    from regen.narratives.prompts import Limits as RequestLimits
    from regen.narratives.runner import Limits as RunLimits

    prompt, completion = options["price"]["prompt"], options["price"]["completion"]
    if (prompt is None) != (completion is None):
        raise ValueError(f"{where}.price needs both prompt and completion, in dollars per million tokens.")
    try:
        return {
            "endpoint": Endpoint(
                sampling=Sampling(**{name: options[name] for name in ("temperature", "top_p", "max_tokens", "seed")}),
                **{name: options[name] for name in ("model", "base_url", "api_key_env", "timeout")},
            ),
            "ledger": Path(options["ledger"]),
            "request_limits": RequestLimits(options["text_characters"], options["history_characters"]),
            "run_limits": RunLimits(
                price=None if prompt is None else Price(prompt, completion),
                max_cost=max_cost,
                **{
                    name: options[name]
                    for name in ("concurrency", "requests_per_minute", "tokens_per_minute", "max_attempts")
                },
            ),
        }
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def encoded_artefacts(
    cfg: DictConfig, parts: tuple[str, ...], prepared: Artefact, *, force: bool = False
) -> dict[str, Artefact]:
    """Stage `encode` of a config: `cf`, `content` or both, by name."""
    root = Path(cfg.paths.data_dir)
    made: dict[str, Artefact] = {}
    if "cf" in parts:
        config = plain(cfg.cf)
        model = instantiate(config["model"])
        split = Split(**plain(cfg.split))
        made["cf"] = encode_cf(
            model, config, alpha=config["alpha"], prepared=prepared, split=split, root=root, force=force
        )
    if "content" in parts:
        made["content"] = encode_content(
            identity.sentence_encoder(cfg.content.pretrained),
            pretrained=cfg.content.pretrained,
            batch_size=cfg.content.batch_size,
            prepared=prepared,
            root=root,
            engine=build_engine(cfg),
            force=force,
        )
    return made


def build_engine(cfg: DictConfig) -> Engine:
    """What `engine` names; the config of a run from before there were engines has none."""
    return HERE if cfg.get("engine") is None else instantiate(plain(cfg.engine))


def encoder_parts(name: str) -> tuple[str, ...]:
    """Which encoders' artefacts an `encoder` value needs.

    Raises:
        ValueError: If there is no such encoder.
    """
    if name in (*CONTROLS, TEXT):
        return ()
    if name not in ENCODER_PARTS:
        raise ValueError(f"encoder.name={name!r} is none of {', '.join([*ENCODER_PARTS, *CONTROLS, TEXT])}.")
    return ENCODER_PARTS[name]


def interaction_vectors(cfg: DictConfig, prepared: Artefact, encoded: Mapping[str, Artefact]) -> Any:
    """What `encoder` lets into the adapter (`fusion.InteractionVectors`)."""
    tables, name = load_tables(prepared.path), cfg.encoder.name
    if name == TEXT:
        return fusion.WordsOnly()
    if name == "none":
        return fusion.NoVectors(cfg.encoder.dim)
    if name == "noise":
        return fusion.NoiseVectors(cfg.encoder.dim, cfg.seed)
    if name == "random":
        return fusion.RandomVectors(item_rows(tables).to_numpy(), cfg.encoder.dim, cfg.seed)
    parts: list[fusion.InteractionVectors] = []
    if "cf" in encoder_parts(name):
        parts.append(load_cf(encoded["cf"], tables))
    if "content" in encoder_parts(name):
        parts.append(load_content(encoded["content"]))
    return fusion.Fused(tuple(parts))
