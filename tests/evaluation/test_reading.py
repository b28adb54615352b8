"""The sentences under a table say what its numbers say."""

import polars as pl
import pytest
from evaluation.test_comparison import cell, write_run

from regen.evaluation.comparison import Columns, compare
from regen.evaluation.reading import reading


def grid(tmp_path, needs, *, seeds=3, floors=True, **settings):
    return [
        cell(write_run(tmp_path / f"{name}{seed}", need=need, floors=floors), name, seed, **settings)
        for name, need in needs.items()
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (0.9, "both is 0.0 pp above cf in need recovery (not worse by more than 5 pp)."),
        (0.3, "both is 60.0 pp below cf in need recovery (worse by more than 5 pp)."),
        (0.8, "both is 10.0 pp below cf in need recovery (it is open whether it is worse by more than 5 pp)."),
    ],
)
def test_the_joint_encoder_is_read_by_its_verdict(tmp_path, need, said):
    comparison = compare(grid(tmp_path, {"cf": 0.9, "content": 0.1, "both": need}), resamples=500)
    [block] = comparison.blocks
    order, difference, history = reading(block)
    assert order.startswith("Need recovery: ")
    assert f"both {need:.3f}" in order
    assert order.index("cf 0.9") < order.index("content 0.1")
    assert difference == said
    assert history == (
        f"Paired with other users, the texts of both reach {need:.3f} in need recovery; "
        "no dependence on the history is shown."
    )
    assert comparison.to_terminal().endswith(history) or history[:60] in comparison.to_terminal()[-200:]
    assert " ".join([order, difference, history]) in comparison.to_markdown()


def test_without_planted_signals_the_headline_is_read(tmp_path):
    cells = [
        cell(write_run(tmp_path / f"{name}{seed}", shift=shift), name, seed)
        for name, shift in {"cf": 0.0, "content": 0.0, "both": 0.1}.items()
        for seed in range(3)
    ]
    for one in cells:
        path = one.folder / "examples.parquet"
        pl.read_parquet(path).drop("recovery_need_right", "recovery_need_named").write_parquet(path)
    [block] = compare(cells, resamples=500).blocks
    order, difference, history = reading(block)
    assert order.startswith("Similarity: both 0.6")
    assert "% above cf in similarity (holds after the correction)." in difference
    assert history.endswith("in similarity; in similarity they depend on the history.")


def test_two_values_of_another_setting_are_compared_without_a_claim_below_three_seeds(tmp_path):
    cells = [
        cell(write_run(tmp_path / name, need=need, floors=False), "both", 0, adapter=name)
        for name, need in {"linear": 0.9, "mlp": 0.5}.items()
    ]
    [block] = compare(cells, columns=Columns("adapter", "linear"), resamples=500).blocks
    order, difference = reading(block)
    assert order == "Need recovery: linear 0.900, mlp 0.500."
    assert difference == "mlp is 40.0 pp below linear in need recovery (worse by more than 5 pp)."


def test_a_grid_in_which_nothing_finished_says_nothing(tmp_path):
    [block] = compare([cell(tmp_path / "none", "cf")], resamples=100).blocks
    assert reading(block) == []


def test_metrics_that_do_not_lead_are_folded(tmp_path):
    cells = grid(tmp_path, {"cf": 0.9, "both": 0.9})
    for one in cells:
        path = one.folder / "examples.parquet"
        pl.read_parquet(path).with_columns(rougeL=0.25).write_parquet(path)
    comparison = compare(cells, resamples=100)
    lines = comparison.to_terminal().splitlines()
    assert "Not shown here: ROUGE-L." in lines
    assert not [line for line in lines if line.startswith("ROUGE-L ")]
    assert [line for line in comparison.to_terminal(every=True).splitlines() if line.startswith("ROUGE-L ")]
    lead, folded = comparison.to_markdown().split("<details><summary>ROUGE-L</summary>")
    assert "| Need recovery |" in lead
    assert "| ROUGE-L | 25.00" in folded.split("</details>")[0]
