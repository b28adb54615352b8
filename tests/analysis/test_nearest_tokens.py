"""Nearest tokens of tokens and of items."""

import polars as pl
import torch

from regen.analysis.nearest_tokens import item_soft_tokens, nearest_token_table, nearest_tokens


def test_nearest_token_of_a_token_embedding_is_that_token(samples):
    tokens = samples["linear"].token_embeddings
    ids = torch.tensor([5, 70, 2000])
    cosines, nearest = nearest_tokens(3 * tokens[ids], tokens, count=4)
    assert nearest[:, 0].tolist() == ids.tolist()
    torch.testing.assert_close(cosines[:, 0], torch.ones(3))
    assert (cosines.diff(dim=1) <= 0).all()


def test_items_have_the_mean_of_their_soft_tokens(sample):
    items, means = item_soft_tokens(sample)
    assert items["interactions"].sum() == len(sample.soft)
    assert items["popularity"].is_sorted(descending=True)
    for row, item in enumerate(items["item_id"]):
        own = torch.from_numpy((sample.interactions["item_id"] == item).to_numpy())
        torch.testing.assert_close(means[row], sample.soft[own].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_nearest_token_table_names_tokens(sample):
    table = nearest_token_table(sample, items=3, count=2)
    assert len(table) == 3
    assert table.schema["tokens"] == pl.List(pl.String)
    _, means = item_soft_tokens(sample)
    nearest = torch.cosine_similarity(means[0][None], sample.token_embeddings).argmax()
    assert table["tokens"][0][0] == sample.tokenizer.decode([int(nearest)])
