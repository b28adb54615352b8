"""The analysis figures of a report: images for the page and as files, each with a text alternative."""

import base64
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regen.analysis.report_runs import ReportedRun
from regen.data.prepare import load_tables
from regen.storage.artefacts import Artefact, write_atomically
from regen.training.run import WEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regen.analysis.adapter_sample import AdapterSample

logger = logging.getLogger(__name__)
INTERACTIONS = 2000  # sampled interactions of test users
POINTS = 500  # points per group in a plane
LINEAR = "linear"  # the adapter whose weights can be read
SALT = "regen"  # makes the identifiers in an SVG reproducible


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        title: Title of the image.
        alt: Text alternative.
        image: Content as SVG or PNG.
        file: File name without extension.
        note: A note on how to read it.
        broad: Whether it needs the full width of the page.
    """

    title: str
    alt: str
    image: bytes
    file: str
    note: str = ""
    broad: bool = False

    @property
    def kind(self) -> str:
        """The file extension."""
        return "png" if self.image.startswith(b"\x89PNG") else "svg"

    @property
    def source(self) -> str:
        """The image as a `data:` URL."""
        media = {"png": "png", "svg": "svg+xml"}[self.kind]
        return f"data:image/{media};base64,{base64.b64encode(self.image).decode()}"


@dataclass(frozen=True)
class Chapter:
    """The pictures of one run or one data set, and sentences about those that are missing."""

    title: str
    pictures: Sequence[Picture]
    problems: Sequence[str]


def data_chapters(runs: Sequence[ReportedRun]) -> list[Chapter]:
    """Lengths of narratives and users per item, with one chapter per available data set."""
    found = {run.data.path: run.data for run in runs if run.data is not None}
    return [_drawn(f"Data {path.name}", partial(_of_data, data)) for path, data in found.items()]


def adapter_chapters(runs: Sequence[ReportedRun], *, seed: int) -> list[Chapter]:
    """How adapters use CF and content: one chapter per kind of adapter, from its newest finished `both` run."""
    both = [run for run in runs if run.encoder == "both" and run.finished and not run.cell.recommends]
    if not both:
        return [Chapter("CF and content in the adapter", [], ["There is no finished run with encoder=both."])]
    by_kind: dict[str, list[ReportedRun]] = {}
    for run in both:
        by_kind.setdefault(str(run.config.get("adapter", {}).get("name")), []).append(run)
    kinds = sorted(by_kind, key=lambda kind: (kind != LINEAR, kind))
    return [_adapter_chapter(kind, by_kind[kind], seed) for kind in kinds]


def write_files(chapters: Sequence[Chapter], folder: Path) -> None:
    """Writes every picture into a folder."""
    for picture in (picture for chapter in chapters for picture in chapter.pictures):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{picture.file}.{picture.kind}"
        write_atomically(path, partial(Path.write_bytes, data=picture.image))


def _adapter_chapter(kind: str, alike: Sequence[ReportedRun], seed: int) -> Chapter:
    """The chapter of the newest of the runs with one kind of adapter."""
    run = max(alike, key=lambda run: (run.folder / WEIGHTS).stat().st_mtime)
    of = f", the newest of {len(alike)} finished runs with encoder=both and adapter={kind}" if len(alike) > 1 else ""
    title = f"CF and content in the adapter of {run.folder.name}{of}"
    if isinstance(run.inputs, str):
        return Chapter(title, [], [f"Not drawn: {run.inputs}"])
    chapter = _drawn(title, partial(_of_adapter, run.folder, kind, seed))
    if kind != LINEAR and not chapter.problems:
        reason = f"Singular values are not drawn: adapter={kind} has no CF and content blocks; linear has."
        return Chapter(title, chapter.pictures, [reason])
    return chapter


def _drawn(title: str, pictures: Callable[[], Iterator[Picture]]) -> Chapter:
    """A chapter with the pictures up to the first that fails, and the reason for the failure."""
    done: list[Picture] = []
    try:
        done.extend(pictures())
    except ModuleNotFoundError as error:
        return Chapter(title, done, [f"Not drawn: {error}. Run: pip install 'regen[analysis]'"])
    except Exception as error:  # a problem with one run's files must not prevent the page
        logger.warning("%s: not drawn", title, exc_info=True)
        return Chapter(title, done, [f"Not drawn: {type(error).__name__}: {error}"])
    return Chapter(title, done, [])


def _of_data(data: Artefact) -> Iterator[Picture]:
    from regen.analysis import figures
    from regen.analysis.data_figures import items_per_user, narrative_lengths, users_per_item

    tables = load_tables(data.path)
    lengths = narrative_lengths(tables.narratives)
    if len(lengths):
        parts = lengths.partition_by("feature", maintain_order=True)
        medians = [(part["feature"][0], np.median(part["words"].to_numpy()), len(part)) for part in parts]
        words = "; ".join(f"{feature} {median:g} words (n = {n:,})" for feature, median, n in medians)
        boxes = figures.narrative_lengths(lengths)
        boxes.axes[0].set_ylabel("")  # a figure of one feature is too low for it
        yield Picture(
            "Length of the reference narratives",
            f"Box plots of words per narrative. Medians: {words}.",
            image(boxes),
            f"{data.path.name}-narrative_lengths",
            "Boxes: quartiles; whiskers: 5th to 95th percentile.",
        )
    items, users = items_per_user(tables.interactions), users_per_item(tables.interactions)
    bought, buyers = np.median(items["items"].to_numpy()), np.median(users["users"].to_numpy())
    yield Picture(
        "Items per user, users per item",
        f"Two histograms. {len(items):,} users bought a median of {bought:g} items; {len(users):,} "
        f"items were bought by a median of {buyers:g} users.",
        image(figures.interaction_counts(items, users)),
        f"{data.path.name}-users_and_items",
        broad=True,
    )


def _of_adapter(folder: Path, kind: str, seed: int) -> Iterator[Picture]:
    from regen.analysis import figures
    from regen.analysis.adapter_sample import open_adapter
    from regen.analysis.adapter_weights import cf_shares
    from regen.analysis.popularity import share_by_popularity, share_overall

    sample = open_adapter(folder, interactions=INTERACTIONS, seed=seed)
    shares = cf_shares(sample)
    drawn = f"{len(sample.interactions):,} of the test users' {sample.available:,} interactions."
    overall = [share_overall(share, sample.interactions).row(0, named=True) for share in shares.values()]
    words = "; ".join(f"by {name} {_median(of)}" for name, of in zip(shares, overall, strict=True))
    yield Picture(
        "CF's share of each interaction's soft token",
        f"Histogram over {drawn} Median share of CF: {words}.",
        image(figures.share_distribution(shares)),
        f"{kind}-cf_share",
        f"{drawn} 0: content alone, 1: CF alone.",
    )
    tables = {name: share_by_popularity(share, sample.interactions) for name, share in shares.items()}
    name, table = next(iter(tables.items()))
    medians = "; ".join(f"{row['bucket']} {_median(row)}" for row in table.iter_rows(named=True))
    yield Picture(
        "CF's share by the item's popularity",
        f"Medians with 95 % intervals over items. By {name}, by training interactions: {medians}.",
        image(figures.share_by_popularity(tables)),
        f"{kind}-cf_share_by_popularity",
        "0: items that no training user bought, whose CF vector is zero.",
    )
    yield from _planes(sample, kind)
    yield from _of_linear(sample)


def _of_linear(sample: "AdapterSample") -> Iterator[Picture]:
    from regen.analysis import figures
    from regen.analysis.adapter_weights import singular_values, split_projection
    from regen.models.adapter import LinearAdapter

    if not isinstance(sample.adapter, LinearAdapter):
        return
    projection = split_projection(sample.adapter, sample.cf_dim)
    values = {"CF block": singular_values(projection.cf), "content block": singular_values(projection.content)}
    words = "; ".join(f"{name}: {len(of)} values, largest {_number(of.max().item())}" for name, of in values.items())
    yield Picture(
        "Singular values of the projection's blocks",
        f"Two falling curves on a logarithmic scale. {words}.",
        image(figures.singular_values(values)),
        f"{LINEAR}-singular_values",
    )
    around = {
        "from zero": projection.parts(sample.fused).cosines,
        "from their means": projection.parts(sample.fused, centred=True).cosines,
    }
    medians = "; ".join(f"{name} {_number(of.nanmedian().item())}" for name, of in around.items())
    yield Picture(
        "Do the CF part and the content part point the same way?",
        f"Histograms of the cosine of both parts of a soft token. Medians, measured {medians}.",
        image(figures.part_cosines(around, lm_dim=sample.soft.shape[1])),
        f"{LINEAR}-part_cosines",
        "1: the same way, 0: at right angles. From their means: in what tells one interaction from another.",
    )


def _planes(sample: "AdapterSample", kind: str) -> Iterator[Picture]:
    from regen.analysis import figures
    from regen.analysis.projections import embed_in_plane, embedding_groups

    groups = embedding_groups(sample)
    tsne = embed_in_plane(groups, method="tsne", most=POINTS, seed=sample.seed)
    sizes = ", ".join(f"{size:,} {name}" for name, size in tsne.sizes.items())
    yield Picture(
        "Soft tokens among the language model's tokens, t-SNE",
        f"Scatter plot of {sizes}, placed by t-SNE.",
        image(figures.planes(tsne), vector=False),
        f"{kind}-tsne",
        "Keeps neighbourhoods; how far apart clusters lie means nothing.",
    )
    pca = embed_in_plane(groups, method="pca", most=POINTS, seed=sample.seed)
    assert pca.explained is not None
    yield Picture(
        "The same, PCA",
        f"Scatter plot of {sizes}, along two principal components with {sum(pca.explained):.0%} of the variance.",
        image(figures.planes(pca), vector=False),
        f"{kind}-pca",
        "Keeps distances, as far as two axes go.",
    )


def image(figure: "Figure", *, vector: bool = True) -> bytes:
    """A figure as SVG, or as PNG if it has too many points for an SVG."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if vector else {"dpi": 150}
    with mpl.rc_context({"svg.hashsalt": SALT}):
        figure.savefig(buffer, format="svg" if vector else "png", **options)
    return buffer.getvalue()


def _median(of: Mapping[str, Any]) -> str:
    """The median of a row with its interval."""
    return "undefined" if of["median"] is None else f"{of['median']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"
