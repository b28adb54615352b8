"""What is pushed to the hub, and what it refuses; `HfApi` is replaced, for no hub is within reach of a test."""

from typing import ClassVar

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from regen.storage import hub
from regen.storage.hub import push


class Hub:
    """Stands for HfApi: keeps what it is told, or fails."""

    told: ClassVar[list] = []
    fault: Exception | None = None

    def create_repo(self, repository, **options):
        self.told.append(("create_repo", repository, options))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, **options):
        self.told.append(("upload_folder", options))
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def replaced(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "told", [])
    return Hub


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("private", [True, False])
def test_a_push_makes_a_repository_and_uploads_the_folder(replaced, tmp_path, kind, private):
    assert push(tmp_path, "me/mine", kind=kind, private=private) == "https://huggingface.co/me/mine"
    (_, repository, made), (_, sent) = replaced.told
    assert (repository, made) == ("me/mine", {"repo_type": kind, "private": private, "exist_ok": True})
    assert sent.pop("commit_message")
    assert sent == {"folder_path": tmp_path, "repo_id": "me/mine", "repo_type": kind}


RESPONSE = httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co/api"))
FAULTS = [
    HfHubHTTPError("403 Forbidden: no rights", response=RESPONSE),
    LocalTokenNotFoundError("no rights"),
    ConnectionError("no rights"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_what_the_hub_refuses_is_told_and_the_folder_stays(replaced, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(replaced, "fault", fault)
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(ValueError, match=r"push_to=me/mine: the hub did not take it \(.*no rights.*\)\. Set HF_TOKEN"):
        push(tmp_path, "me/mine", kind="dataset", private=True)
    assert (tmp_path / "README.md").read_text() == "card"


@pytest.mark.parametrize("repository", ["me/mine/too", "me/mi ne", "-me/mine", ""])
def test_a_name_that_the_hub_does_not_know_is_told_with_its_setting(tmp_path, repository):
    with pytest.raises(ValueError, match=f"push_to={repository}: the hub did not take it"):
        push(tmp_path, repository, kind="model", private=True)


def test_without_a_network_the_push_says_so(tmp_path):
    with pytest.raises(ValueError, match="push_to=me/mine: the hub did not take it"):
        push(tmp_path, "me/mine", kind="dataset", private=True)
