"""Downloads public data files, resumes interrupted transfers and checks the size."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential
from tqdm import tqdm

from regen.data.tables import DataError

TIMEOUT = 30.0  # seconds without any data
ATTEMPTS = 4
DATA_PAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"


def user_cache() -> Path:
    """Folder of downloads and converted language models: `$REGEN_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "regen"
    return Path(os.environ.get("REGEN_CACHE", default))


def fetch(location: str, *, setting: str, folder: Path | None = None, page: str = DATA_PAGE) -> Path:
    """Returns the local file of a path or URL, and downloads it if necessary.

    Args:
        location: A path, or a URL that begins with http.
        setting: Config key of the location, for error messages.
        folder: Searched first for the file name of a URL, with and without `.gz`.
        page: Web page of the data set, for error messages.

    Raises:
        DataError: If the file does not exist or cannot be downloaded.
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
                    f"{location}: cannot be fetched ({str(error) or type(error).__name__}). Look for {name} on the "
                    f"page of the data set, {page}, on Kaggle or on the Hugging Face hub. Put the file into a folder "
                    f"and set source.folder=FOLDER, or set {setting}=PATH_OR_URL. The same command resumes a partial "
                    "download."
                ) from error
    return target


def place_of(url: str) -> Path:
    """Path of a URL's file in the user's cache. Each URL has its own folder."""
    return user_cache() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:12] / Path(urlsplit(url).path).name


class _BrokenOffError(httpx.TransportError):
    """The file is shorter than the announced size."""


@retry(
    retry=retry_if_exception_type(httpx.TransportError),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_exponential(multiplier=0.5, max=10),
    reraise=True,
)
def _transfer(url: str, target: Path) -> None:
    """Downloads to `<name>.part`, resumes an earlier transfer, and renames the complete file."""
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # the file on the host has changed
            part.unlink()
            raise _BrokenOffError("the partial file does not match the one on the host; starting again")
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=target.name) as bar,
        ):
            for block in answer.iter_raw():  # raw: some hosts declare a .gz file as encoded
                file.write(block)
                bar.update(len(block))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _BrokenOffError(f"received {size:,} of {total:,} bytes")
    part.replace(target)
