"""Opening a run: which interactions are drawn, and that their vectors and tokens are those of the model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regen.analysis.adapter_sample import newest_run, open_adapter
from regen.analysis.adapter_weights import cf_shares, principal_angles, singular_values, split_projection
from regen.data.prepare import load_tables
from regen.data.splits import split_of
from regen.embeddings.encode import cf_interactions
from regen.pipeline import load_run, read_run, train_and_evaluate


def test_the_sample_is_of_test_users_and_each_interaction_counts_once(samples, trained_runs):
    sample, run = samples["linear"], read_run(trained_runs["linear"])
    tables = load_tables(run.inputs.prepared.path)
    users = sample.interactions["user_id"]
    assert set(split_of(users, run.config.split)) == {"test"}
    pairs = sample.interactions.select("user_id", "item_id").rows()
    bought = tables.interactions.select("user_id", "item_id").rows()
    assert set(pairs) <= set(bought)
    assert len(sample.interactions) == len(sample.fused) == 20 < sample.available
    assert len(set(zip(sample.rows.tolist(), sample.positions.tolist(), strict=True))) == len(sample.rows)


def test_sampled_vectors_are_those_the_model_was_given(samples, trained_runs):
    sample, loaded = samples["linear"], load_run(read_run(trained_runs["linear"]))
    cf, content = loaded.data.splits["test"].vectors.parts
    items = load_tables(loaded.run.inputs.prepared.path).items["item_id"].to_list()
    rows = [items.index(item) for item in sample.interactions["item_id"]]
    assert sample.cf_dim == cf.dim
    np.testing.assert_allclose(sample.fused[:, : cf.dim].numpy(), cf.vectors[rows], rtol=1e-6)
    assert sample.fused.shape[1] == cf.dim + content.dim


def test_the_whole_sample_and_its_soft_tokens_without_padding(trained_runs, sample):
    """A soft token is the same whichever histories it is batched with."""
    loaded = load_run(read_run(trained_runs[sample.run.config.adapter.name]))
    test = loaded.data.splits["test"]
    row_of = {example.user_id: index for index, example in enumerate(test.examples)}
    for at in range(0, len(sample.rows), 7):
        history = torch.from_numpy(test.history(row_of[sample.interactions["user_id"][at]]))[None]
        with torch.no_grad():
            alone = loaded.model.adapter(history, torch.ones(history.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(alone[0, sample.positions[at]], sample.soft[at], atol=1e-5, rtol=1e-4)


def test_popularity_counts_what_cf_was_fitted_on(samples):
    sample = samples["linear"]
    split = sample.run.config.split
    tables = load_tables(sample.run.inputs.prepared.path)
    seen = cf_interactions(tables, split)
    for item, popularity in sample.interactions.select("item_id", "popularity").rows():
        row = tables.items["item_id"].to_list().index(item)
        assert popularity == seen.filter(item=row).height


def test_a_seed_draws_the_same_interactions_and_another_seed_others(trained_runs):
    draws = [open_adapter(trained_runs["linear"], interactions=10, seed=seed).interactions for seed in (1, 1, 2)]
    assert draws[0].equals(draws[1])
    assert not draws[0].equals(draws[2])


def test_tokens_are_what_the_lm_embeds(samples, trained_runs):
    sample, loaded = samples["linear"], load_run(read_run(trained_runs["linear"]))
    ids = torch.tensor([3, 1000])
    with torch.no_grad():
        expected = loaded.model.lm.get_input_embeddings()(ids)
    torch.testing.assert_close(sample.token_embeddings[ids], expected)
    assert len(sample.token_embeddings) == len(loaded.lm.tokenizer)


def test_relative_paths_of_a_run_hold_from_where_it_was_started(small_config, tmp_path, monkeypatch):
    options = ["trainer.max_steps=1", "paths.data_dir=outputs/data", "paths.runs_dir=outputs/runs"]
    monkeypatch.chdir(tmp_path)
    folder, _ = train_and_evaluate(small_config(*options, without="paths"))
    elsewhere = tmp_path / "notebooks"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    sample = open_adapter(newest_run(tmp_path / "outputs/runs"))
    assert sample.run.folder == (tmp_path / folder).resolve()
    assert Path.cwd() == elsewhere
    assert list(elsewhere.iterdir()) == []
    assert sample.cf_dim == sample.fused.shape[1]
    shares = cf_shares(sample)["attribution"]
    assert (shares[~shares.isnan()] == 1).all()
    projection = split_projection(sample.adapter, sample.cf_dim)
    assert len(singular_values(projection.content)) == len(principal_angles(projection.cf, projection.content)) == 0


def test_the_newest_run_and_none(trained_runs, tmp_path):
    runs = trained_runs["mlp"].parent
    newest = max(trained_runs.values(), key=lambda folder: (folder / "model.safetensors").stat().st_mtime)
    assert newest_run(runs) == newest
    with pytest.raises(FileNotFoundError, match="no finished run with encoder=cf among 3"):
        newest_run(runs, encoders=["cf"])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        open_adapter(tmp_path)


def test_a_control_and_an_unfinished_run_are_refused(small_config):
    folder, _ = train_and_evaluate(small_config("encoder=noise", "encoder.dim=8", "trainer.max_steps=1"))
    with pytest.raises(ValueError, match="encoder=noise has neither CF nor content"):
        open_adapter(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="not finished"):
        open_adapter(folder)
