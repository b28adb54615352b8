"""Fetching public data files: by path or URL, resumed where a transfer broke off, checked by size."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from regen.data.tables import DataError

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4
DATA_PAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"


def user_cache() -> Path:
    """Where fetched files and converted language models lie: `$REGEN_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "regen"
    return Path(os.environ.get("REGEN_CACHE", default))


def fetch(location: str, *, setting: str, folder: Path | None = None, page: str = DATA_PAGE) -> Path:
    """The local file of a path or URL.

    Args:
        location: A path, or a URL that begins with http.
        setting: The config key that sets it, for messages.
        folder: Looked into first for a file of a URL's name, also for one that is no longer gzipped.
        page: Of the data set, for messages.

    Raises:
        DataError: If there is no such file, or the host does not give it; the message says what to do instead.
    """
    if not location.startswith(("http://", "https://")):
        if not Path(location).is_file():
            raise DataError(f"{setting}={location}: no such file. Give a path or a URL.")
        return Path(location)
    name = Path(urlsplit(location).path).name
    for known in () if folder is None else (folder / name, folder / name.removesuffix(".gz")):
        if known.is_file():
            return known
    target = place_of(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{name}.lock")):
        if not target.exists():
            try:
                _transfer(location, target)
            except (httpx.HTTPError, OSError) as error:
                raise DataError(
                    f"{location}: cannot be fetched ({str(error) or type(error).__name__}). The data set's page, "
                    f"{page}, says where its files lie now, and most "
                    f"verticals have mirrors on Kaggle and the Hugging Face hub under the name {name}. Put the file "
                    f"into a folder and set source.folder=FOLDER, or {setting}=PATH_OR_URL. What was fetched so far "
                    "is kept, and the same command goes on from there."
                ) from error
    return target


def place_of(url: str) -> Path:
    """Where the file of a URL lies in the user's cache, under its name and apart from those of all other URLs."""
    return user_cache() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:12] / Path(urlsplit(url).path).name


class _BrokenOffError(httpx.TransportError):
    """The connection closed before the announced size was reached."""


def _resumable(error: type[Exception] = httpx.TransportError) -> Callable[..., Callable[..., None]]:
    return retry(
        retry=retry_if_exception_type(error),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.5, max=10),
        reraise=True,
    )


@_resumable()
def _transfer(url: str, target: Path) -> None:
    """Fetches into `<name>.part`, going on where an earlier transfer stopped, and renames when it is whole."""
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # the file there is another one now
            part.unlink()
            raise _BrokenOffError("the partial file does not fit the one on the host; starting anew")
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=target.name) as bar,
        ):
            for block in answer.iter_raw():  # some hosts call a .gz file encoded; it stays as it is
                file.write(block)
                bar.update(len(block))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _BrokenOffError(f"{size:,} of {total:,} bytes came")
    part.replace(target)
