"""A finished run with both encoders, its exported folder and the model in it."""

import pytest
from serving.finished_runs import FinishedRun, trained
from small import quick_embeddings

from regen.serving import NarrativeModel


@pytest.fixture(scope="session")
def session_config(tmp_path_factory):
    """As `small_config`, for runs that several tests read."""
    from small import SMALL

    from regen.config.objects import compose

    folder = tmp_path_factory.mktemp("serving")
    paths = [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs", "trainer.accelerator=cpu"]
    quick = "cf.model.iterations=3"  # with more, the tiny model writes nearly the same for every history

    def composed(*overrides):
        return compose([*SMALL, *paths, quick, *overrides])

    return composed


@pytest.fixture(autouse=True)
def no_minilm(request):
    """Default tests encode texts without weights; slow ones as users do."""
    if request.node.get_closest_marker("slow"):
        yield
        return
    with quick_embeddings():
        yield


@pytest.fixture(scope="session")
def finished(session_config):
    """A run with both encoders and LoRA."""
    with quick_embeddings():
        return FinishedRun(trained(session_config, "encoder=both", "tuning=lora", "adapter=mlp"))


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """Its exported folder; tests that change it work on a copy."""
    return NarrativeModel.from_run(finished.folder).save_pretrained(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="session")
def model(exported):
    return NarrativeModel.from_pretrained(exported)


@pytest.fixture(scope="session")
def grid(session_config, finished):
    """The folder that holds that run and its grid's others."""
    with quick_embeddings():
        for encoder in ("cf", "content"):
            trained(session_config, f"encoder={encoder}", "tuning=lora", "adapter=mlp")
    return finished.folder.parent
