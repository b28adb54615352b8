"""Known users have the histories of training, and of no other version of the data."""

import pytest

from regen import pipeline
from regen.data.histories import build_examples
from regen.serving.users import Users


@pytest.fixture(scope="module")
def data(finished):
    return pipeline.read_run(finished.folder).inputs.prepared


def test_histories_are_those_of_training(finished):
    users = Users(finished.tables, latest=3)
    examples = build_examples(finished.tables, withhold={"user_profile": False}, max_history=3)
    assert examples
    for example in examples[:20]:
        rows = finished.tables.interactions[example.rows]
        history = users.history(example.user_id)
        assert [one.item_id for one in history] == rows["item_id"].to_list()
        assert [one.review for one in history] == rows["review_text"].to_list()
    assert len(users) == finished.tables.interactions["user_id"].n_unique()
    assert users.history("nobody") is None


def test_the_artefact_of_training_is_taken(data):
    users = Users.of_artefact(data.path, fingerprint=data.fingerprint, latest=50)
    assert len(users) > 0


def test_another_version_of_the_data_is_refused(data):
    with pytest.raises(ValueError, match=f"is {data.fingerprint}, and the model was trained on 0123456789ab"):
        Users.of_artefact(data.path, fingerprint="0123456789ab", latest=50)


def test_no_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such artefact"):
        Users.of_artefact(tmp_path / "nothing", fingerprint="0123456789ab", latest=50)
