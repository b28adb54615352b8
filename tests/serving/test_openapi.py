"""What the OpenAPI document promises holds for whatever schemathesis makes of it."""

import pytest
import schemathesis
from serving.services import service

from regen.training import run as runs

KEY = {"Authorization": "Bearer secret"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of its own libraries
]


@pytest.fixture(scope="module")
def document(exported, finished, tmp_path_factory):
    data = runs.read_run(finished.folder).inputs.prepared.path.resolve()
    with service(tmp_path_factory.mktemp("service"), exported, f"data={data}", REGEN_API_KEY="secret") as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
def test_nothing_contradicts_the_document(case):
    case.call_and_validate(headers=KEY, timeout=60)
