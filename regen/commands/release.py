"""Stage `release` alone: `regen release source=amazon2018 vertical=gift_cards narrator=template`."""

from pathlib import Path

from omegaconf import DictConfig

from regen.config.command_line import main


@main("release")
def run(cfg: DictConfig) -> None:
    import logging

    from hydra.core.hydra_config import HydraConfig

    from regen.data.prepare import load_tables
    from regen.embeddings.encode import Split
    from regen.narratives.release import release
    from regen.pipeline import data_artefact, plain
    from regen.storage.hub import push

    data = data_artefact(cfg)
    users = load_tables(data.path).interactions["user_id"].unique().sort()
    folder = release(
        data,
        source=HydraConfig.get().runtime.choices["source"],
        vertical=cfg.vertical.name,
        split_of=dict(zip(users, Split(**plain(cfg.split)).of(users), strict=True)),
        folder=Path(cfg.folder),
        licence=cfg.license,
        ratings=None if cfg.ratings is None else Path(cfg.ratings),
        force=cfg.force,
    )
    logger = logging.getLogger(__name__)
    logger.info("release: %s", folder)
    if cfg.push_to is not None:
        try:
            logger.info("release: %s", push(folder, cfg.push_to, kind="dataset", private=cfg.private))
        except ValueError as error:
            again = f"The data set stays in {folder}; give the command again with force=true."
            raise ValueError(f"{error} {again}") from error
