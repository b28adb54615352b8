"""Fetching from a host on this machine: whole, resumed or refused, and never half a file under the final name."""

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_none

from regen.data import download
from regen.data.download import fetch, place_of, user_cache
from regen.data.tables import DataError

CONTENT = bytes(range(256)) * 200
NAME = "Toys_5.json.gz"


class Host:
    """Serves one content under every path; a test says how badly.

    Attributes:
        cuts: After how many bytes of the body the next answers end.
        ranges: Whether it knows the Range header.
        requests: Range header of every request so far, null without one.
        seen: What lay in the cache's folder when each request came.
    """

    def __init__(self, downloads):
        self.content, self.status, self.headers = CONTENT, 200, {}
        self.cuts, self.ranges, self.announces_length = [], True, True
        self.requests, self.seen = [], []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers["Range"]
                host.requests.append(asked)
                host.seen.append(visible(downloads))
                if self.path.startswith("/moved/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/moved"))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and host.ranges else 0
                status = host.status if host.status != 200 or not start else 206 if start < len(host.content) else 416
                body = b"" if status == 416 else host.content[start:]
                self.send_response(status)
                if host.announces_length:
                    self.send_header("Content-Length", str(len(body)))
                for name, value in host.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: host.cuts.pop(0)] if host.cuts else body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/files/{NAME}"


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Where fetched files lie during a test."""
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download._transfer.retry, "wait", wait_none())
    return tmp_path / "cache" / "downloads"


@pytest.fixture
def host(downloads):
    host = Host(downloads)
    thread = threading.Thread(target=host.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield host
    host.server.shutdown()
    host.server.server_close()
    thread.join()


def visible(folder):
    return {path.name for path in folder.rglob("[!.]*") if path.is_file()}


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("content", [CONTENT, b""])
def test_a_whole_file_is_fetched_once(host, downloads, announced, content):
    host.content, host.announces_length = content, announced
    path = fetch(host.url, setting="source.reviews")
    assert path == place_of(host.url)
    assert path.read_bytes() == content
    assert fetch(host.url, setting="source.reviews") == path
    assert host.requests == [None]
    assert visible(downloads) == {NAME}


def test_a_broken_transfer_goes_on_where_it_stopped(host, downloads):
    host.cuts = [1000, 20_000]
    path = fetch(host.url, setting="source.reviews")
    assert path.read_bytes() == CONTENT
    assert host.requests == [None, "bytes=1000-", "bytes=21000-"]
    assert host.seen == [set(), {f"{NAME}.part"}, {f"{NAME}.part"}]
    assert visible(downloads) == {NAME}


def test_a_host_that_knows_no_ranges_is_asked_anew(host, downloads):
    host.ranges, host.cuts = False, [1000, 20_000]
    assert fetch(host.url, setting="source.reviews").read_bytes() == CONTENT
    assert host.requests == [None, "bytes=1000-", "bytes=20000-"]
    assert visible(downloads) == {NAME}


def test_a_transfer_that_keeps_breaking_is_an_error_and_the_next_one_goes_on(host, downloads):
    host.cuts = [100] * download.ATTEMPTS
    with pytest.raises(DataError, match=r"cannot be fetched .*The same command resumes a partial download"):
        fetch(host.url, setting="source.reviews")
    assert len(host.requests) == download.ATTEMPTS
    assert visible(downloads) == {f"{NAME}.part"}
    assert fetch(host.url, setting="source.reviews").read_bytes() == CONTENT
    assert host.requests[-1] == f"bytes={100 * download.ATTEMPTS}-"
    assert visible(downloads) == {NAME}


def test_files_of_one_name_from_two_urls_are_two(host):
    host.content = b"what x has"
    first = fetch(host.url.replace("/files/", "/x/"), setting="source.reviews")
    host.content, host.cuts = CONTENT, [100] * download.ATTEMPTS
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(host.url.replace("/files/", "/y/"), setting="source.reviews")
    other = fetch(host.url.replace("/files/", "/z/"), setting="source.reviews")
    assert host.requests[-1] is None, "the part of y is not continued from z"
    assert first.read_bytes() == b"what x has"
    assert other.read_bytes() == CONTENT


def test_a_part_that_does_not_fit_the_file_is_thrown_away(host, downloads):
    place_of(host.url).parent.mkdir(parents=True)
    place_of(host.url).with_name(f"{NAME}.part").write_bytes(b"x" * (len(CONTENT) + 1))
    assert fetch(host.url, setting="source.reviews").read_bytes() == CONTENT
    assert host.requests == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_file_that_the_host_calls_encoded_is_stored_as_it_is(host):
    host.content, host.headers = gzip.compress(CONTENT, mtime=0), {"Content-Encoding": "gzip"}
    host.cuts = [500]
    assert gzip.decompress(fetch(host.url, setting="source.reviews").read_bytes()) == CONTENT
    assert host.requests == [None, "bytes=500-"]


def test_a_moved_file_is_followed(host, downloads):
    path = fetch(host.url.replace("/files/", "/moved/files/"), setting="source.reviews")
    assert path.read_bytes() == CONTENT
    assert visible(downloads) == {NAME}


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_host_that_does_not_give_the_file_is_an_error_that_says_where_else_it_is(host, downloads, status):
    host.status = status
    with pytest.raises(DataError) as caught:
        fetch(host.url, setting="source.metadata")
    for words in (
        host.url,
        str(status),
        "source.metadata=PATH_OR_URL",
        "source.folder=FOLDER",
        "Kaggle",
        "Hugging Face",
        NAME,
    ):
        assert words in str(caught.value)
    assert host.requests == [None]
    assert visible(downloads) == set()


def test_a_host_that_does_not_answer_is_an_error(host, downloads):
    host.server.shutdown()
    host.server.server_close()
    with pytest.raises(DataError, match=rf"{host.url}: cannot be fetched .*source\.reviews=PATH_OR_URL"):
        fetch(host.url, setting="source.reviews")
    assert visible(downloads) == set()


def test_a_file_in_the_folder_is_taken_without_asking_the_host(host, downloads, tmp_path):
    (tmp_path / NAME).write_bytes(b"mine")
    assert fetch(f"{host.url}?download=true", setting="source.reviews", folder=tmp_path) == tmp_path / NAME
    assert host.requests == []
    assert not downloads.exists()


def test_a_folder_without_the_file_does_not_matter(host, downloads, tmp_path):
    assert fetch(host.url, setting="source.reviews", folder=tmp_path / "absent") == place_of(host.url)
    assert host.requests == [None]


def test_two_who_want_the_same_file_fetch_it_once(host, downloads):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(host.url, setting="source.reviews"), range(2)))
    assert paths == [place_of(host.url)] * 2
    assert host.requests == [None]


def test_a_path_is_taken_as_it_is(downloads, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    assert fetch(str(tmp_path / "mine.json"), setting="source.reviews") == tmp_path / "mine.json"
    assert not downloads.exists()


def test_a_missing_path_names_the_setting(tmp_path):
    with pytest.raises(DataError, match=r"source\.reviews=.*mine\.json: no such file\. Give a path or a URL"):
        fetch(str(tmp_path / "mine.json"), setting="source.reviews")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"REGEN_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/regen"),
        ({"HOME": "/home/ann"}, "/home/ann/.cache/regen"),
    ],
)
def test_the_cache_lies_where_the_environment_says(monkeypatch, variables, folder):
    for name in ("REGEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert user_cache() == Path(folder)
