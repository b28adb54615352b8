"""Shapes in the signatures of `regen.analysis` are checked too; one tiny run per adapter, trained once."""

import pytest
from jaxtyping import install_import_hook
from small import quick_embeddings

install_import_hook(["regen.analysis"], "beartype.beartype")

ADAPTERS = {
    "linear": ["adapter=linear"],
    "mlp": ["adapter=mlp", "adapter.hidden_dim=64"],
    "transformer": ["adapter=transformer", "adapter.hidden_dim=16", "adapter.layers=1", "adapter.heads=2"],
}


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory):
    """Folders of runs with encoder=both on the same few users, by adapter; started below a folder of their own."""

    from regen.config.objects import compose
    from regen.pipeline import train_and_evaluate

    root = tmp_path_factory.mktemp("analysis")
    base = ["encoder=both", "source.users=150", "source.narrated_users=40", "source.items=60", "source.purchases=4"]
    base += ["cf.model.factors=8", "cf.model.iterations=3", "lm=tiny", "lm.width=32", "tuning=full"]
    base += ["trainer.max_steps=4", "training.batch_size=2"]
    base += ["trainer.enable_progress_bar=false", "evaluation.resamples=100", "evaluation.generation.max_new_tokens=3"]
    base += [f"paths.data_dir={root}/outputs/data", f"paths.runs_dir={root}/outputs/runs"]
    folders = {}
    for name, options in ADAPTERS.items():
        with quick_embeddings():
            folders[name] = train_and_evaluate(compose([*base, *options]))[0]
    return folders


@pytest.fixture(scope="session")
def samples(trained_runs):
    """A sample of every run's test interactions, by adapter."""
    from regen.analysis.adapter_sample import open_adapter

    return {name: open_adapter(folder, interactions=20, seed=1) for name, folder in trained_runs.items()}


@pytest.fixture(params=ADAPTERS)
def sample(request, samples):
    """The sample of one adapter after the other."""
    return samples[request.param]
