"""`regen release source=amazon2018 narrator=template`: writes a data set to share."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import ReleaseConfig


@main("release")
def run(config: ReleaseConfig) -> None:
    import logging

    from hydra.core.hydra_config import HydraConfig

    from regen.data.prepare import load_tables
    from regen.data.splits import split_of
    from regen.narratives.release import release
    from regen.pipeline import data_artefact
    from regen.storage.hub import push

    data = data_artefact(config)
    users = load_tables(data.path).interactions["user_id"].unique().sort()
    folder = release(
        data,
        source=HydraConfig.get().runtime.choices["source"],
        vertical=config.vertical.name,
        split_of=dict(zip(users, split_of(users, config.split), strict=True)),
        folder=Path(config.folder),
        licence=config.license,
        ratings=None if config.ratings is None else Path(config.ratings),
        force=config.force,
    )
    logger = logging.getLogger(__name__)
    logger.info("release: %s", folder)
    if config.push_to is not None:
        try:
            logger.info("release: %s", push(folder, config.push_to, kind="dataset", private=config.private))
        except ValueError as error:
            again = f"The data set stays in {folder}; give the command again with force=true."
            raise ValueError(f"{error} {again}") from error
