"""The table: columns, pooled seeds, pairing, and cells that failed or are missing."""

import csv
import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from regen.evaluation.comparison import Cell, Columns, compare
from regen.evaluation.comparison_blocks import cell_texts
from regen.evaluation.text_metrics import METRICS
from regen.runtime.costs import EVALUATED, TRAINED

BOOTSTRAP = SimpleNamespace(resamples=100, seed=0)


def write_run(folder, *, users=30, shift=0.0, first=0, features=("f",), need=0.5, floors=True):
    """A run folder with made-up statistics: a similarity per user, raised by `shift`, and a need recovery."""
    ids = [f"u{i:03}" for i in range(first, first + users)]
    similarity = [0.5 + 0.1 * np.sin(7.0 * i) + shift for i in range(first, first + users)]
    systems = {"model": 0.0, "shuffled": -0.2, "constant": -0.1} if floors else {"model": 0.0}
    frames = [
        pl.DataFrame(
            {
                "system": system,
                "user_id": ids,
                "feature": feature,
                "item_id": pl.Series([None] * users, dtype=pl.String),
                "examples": 1.0,
                "similarity": np.array(similarity) + change,
                "recovery_need_right": [float(i < need * users) for i in range(users)],
                "recovery_need_named": 1.0,
                "recovery_brand_right": 0.0,
                "recovery_brand_named": 1.0,
            }
        )
        for feature in features
        for system, change in systems.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pl.concat(frames).write_parquet(folder / "examples.parquet")
    return folder


def cell(folder, encoder, seed=0, error=None, **settings):
    parts = {"cf": ("cf",), "content": ("content",), "both": ("cf", "content")}.get(encoder, ())
    return Cell(folder, encoder, seed, {"feature": "f", **settings}, error, parts)


@pytest.fixture
def cells(tmp_path):
    shifts = {"cf": 0.0, "content": 0.0, "both": 0.1}
    return [cell(write_run(tmp_path / name, shift=shift), name) for name, shift in shifts.items()]


def columns(block):
    return {column.name: column for column in block.columns}


def records(comparison):
    return list(csv.DictReader(io.StringIO(comparison.to_csv())))


def test_columns_stand_in_the_papers_order(cells, tmp_path):
    more = [cell(write_run(tmp_path / name), name) for name in ("mine", "noise", "none", "text", "random")]
    comparison = compare([*reversed(cells), *more], resamples=100)
    [block] = comparison.blocks
    encoders = ["cf", "content", "both", "text", "none", "random", "noise", "mine"]
    assert list(columns(block)) == [
        *encoders,
        "both vs cf",
        "both vs content",
        "both vs the better one",
        "both vs shuffled",
        "shuffled",
        "constant",
    ]


def test_differences_are_paired_and_marked(cells):
    [block] = compare(cells, resamples=200).blocks
    difference = columns(block)["both vs cf"].content["similarity"]
    cf = columns(block)["cf"].content["similarity"].value
    assert difference.value == pytest.approx(100 * 0.1 / cf)
    assert difference.excludes_zero
    need = columns(block)["both vs cf"].content["need_recovery"]
    assert (need.value, need.low, need.high) == (0, 0, 0)


def seeds_of(tmp_path, *, seeds=3, **shifts):
    """Cells of encoders whose similarity is shifted by that much."""
    return [
        cell(write_run(tmp_path / f"{encoder}{seed}", shift=shift), encoder, seed)
        for encoder, shift in shifts.items()
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_differences_between_trainings_have_stars_from_three_seeds_on(tmp_path, seeds):
    comparison = compare(seeds_of(tmp_path, seeds=seeds, cf=0.0, content=0.0, both=0.1), resamples=200)
    [block] = comparison.blocks
    similarity = block.metrics["similarity"]
    for name in ("both vs cf", "both vs content", "both vs the better one"):
        text = cell_texts(similarity, columns(block)[name])[0]
        assert text.endswith("% *" if seeds == 3 else "%")
    assert cell_texts(similarity, columns(block)["both vs shuffled"])[0].endswith("% *")  # one model, its own texts
    need = cell_texts(block.metrics["need_recovery"], columns(block)["both vs cf"])
    assert need[:2] == ("+0.0 pp n.s." if seeds == 3 else "+0.0 pp", "[+0.0, +0.0]")
    head = " (1 seed: over users, no stars) |" if seeds == 1 else f" ({seeds} seeds: over users, no stars) |"
    assert (f"both vs cf{head}" in comparison.to_markdown()) == (seeds < 3)
    assert (head[2:-3] in comparison.to_terminal()) == (seeds < 3)


def test_the_better_one_is_picked_per_metric_and_is_no_further_test(tmp_path):
    cells = [
        cell(write_run(tmp_path / f"{encoder}{seed}", shift=shift, need=need), encoder, seed)
        for encoder, shift, need in (("cf", 0.0, 0.9), ("content", 0.05, 0.1), ("both", 0.1, 0.8))
        for seed in range(3)
    ]
    comparison = compare(cells, resamples=200)
    [block] = comparison.blocks
    better = columns(block)["both vs the better one"]
    assert (better.beside["similarity"], better.beside["need_recovery"]) == ("content", "cf")
    assert better.content["similarity"] == columns(block)["both vs content"].content["similarity"]
    assert better.content["need_recovery"] == columns(block)["both vs cf"].content["need_recovery"]
    assert comparison.differences == 6  # similarity and need, from cf, content and shuffled
    assert cell_texts(block.metrics["need_recovery"], better)[2] == "vs cf, open"
    assert cell_texts(block.metrics["similarity"], better)[2] == "vs content"
    assert "with a margin of 5 pp" in comparison.legend()
    assert "conservative for both" in comparison.legend()
    row = next(of for of in records(comparison) if of["column"] == better.name and of["metric"] == "need_recovery")
    assert (row["beside"], row["verdict"]) == ("cf", "open")


@pytest.mark.parametrize(("need", "verdict"), [(0.9, "not worse"), (0.3, "worse")])
def test_the_verdict_on_planted_signals(tmp_path, need, verdict):
    cells = [
        cell(write_run(tmp_path / f"{encoder}{seed}", need=share), encoder, seed)
        for encoder, share in (("cf", 0.9), ("content", 0.1), ("both", need))
        for seed in range(3)
    ]
    comparison = compare(cells, resamples=200)
    [row] = [line for line in comparison.to_markdown().splitlines() if line.startswith("| Need recovery")]
    assert f"] vs cf, {verdict} |" in row
    assert f"vs cf, {verdict}" in comparison.to_terminal()


def test_more_of_length_and_variety_is_not_better(tmp_path):
    cells = seeds_of(tmp_path, seeds=1, cf=0.0, content=0.0, both=0.0)
    for one in cells:
        path = one.folder / "examples.parquet"
        pl.read_parquet(path).with_columns(distinct=0.5, predicted_words=3.0, reference_words=6.0).write_parquet(path)
    [block] = compare(cells, resamples=100).blocks
    better = columns(block)["both vs the better one"]
    assert {"distinct", "length_ratio"}.isdisjoint(better.beside)
    assert cell_texts(block.metrics["distinct"], better) == ("—", "", "")
    assert not block.estimate_notes(block.rows)


def test_without_one_of_the_single_encoders_the_better_one_is_not_known(tmp_path):
    cells = [*seeds_of(tmp_path, seeds=1, cf=0.0, both=0.1), cell(tmp_path / "none", "content", error="ValueError: x")]
    [block] = compare(cells, resamples=100).blocks
    assert columns(block)["both vs the better one"].content == "missing"


def empty(folder, share):
    """Makes the first texts of a run empty."""
    path = folder / "examples.parquet"
    rows = pl.read_parquet(path)
    texts = [float(at < share * len(rows)) for at in range(len(rows))]
    rows.with_columns(empty=pl.Series(texts)).write_parquet(path)


def test_runs_that_wrote_nothing_or_whose_loss_is_not_finite_are_marked(tmp_path):
    cells = seeds_of(tmp_path, cf=0.0, content=0.0, both=0.1)
    for one in cells:
        empty(one.folder, 1.0 if (one.encoder, one.seed) == ("cf", 1) else 0.0)
    (cells[-1].folder / TRAINED).write_text('{"val_loss": Infinity}')
    (cells[-2].folder / TRAINED).write_text('{"val_loss": 1.5}')
    comparison = compare(cells, resamples=100)
    [block] = comparison.blocks
    marked = {name for name, column in columns(block).items() if column.label.endswith(" †")}
    assert marked == set(columns(block)) - {"content", "constant"}
    assert "† cf: seed 1 wrote only empty texts." in block.caption()
    assert "† both: seed 2 has a validation loss that is not finite (inf)." in block.caption()
    assert block.caption().count("†") == 2
    assert "| cf † | content | both † | both vs cf † |" in comparison.to_markdown()
    assert "cf †" in comparison.to_terminal()
    assert not any("*" in cell_texts(metric, column)[0] for column in block.columns for metric in block.rows)
    assert {of["note"] for of in records(comparison) if of["column"] == "cf"} == {"cf: seed 1 wrote only empty texts"}


def test_there_is_no_percentage_of_a_score_that_is_printed_as_zero(tmp_path):
    cells = seeds_of(tmp_path, cf=-0.5, content=0.0, both=0.1)
    for one in cells:
        path = one.folder / "examples.parquet"
        similarity = pl.when(one.encoder != "cf").then("similarity").otherwise(0.0)
        pl.read_parquet(path).with_columns(similarity=similarity).write_parquet(path)
    comparison = compare(cells, resamples=100)
    [row] = [line for line in comparison.to_markdown().splitlines() if line.startswith("| Similarity")]
    assert row.split(" | ")[4] == "—"
    assert "both vs cf: Similarity of the baseline is 0.000: no percentage." in comparison.to_markdown()


def test_a_difference_among_many_is_corrected_for_all_of_them(tmp_path):
    features = tuple(f"f{at}" for at in range(12))
    encoders = ("cf", "both")
    cells = [
        cell(write_run(tmp_path / f"{name}{seed}", features=features, users=30), name, seed, feature=",".join(features))
        for name in encoders
        for seed in range(3)
    ]
    generator = np.random.default_rng(0)
    for one in cells:  # noise of which a few of many differences exclude zero by chance
        rows = pl.read_parquet(one.folder / "examples.parquet")
        noise = generator.normal(0, 0.05, len(rows))
        rows.with_columns(similarity=pl.lit(0.54 if one.encoder == "both" else 0.5) + pl.Series(noise)).write_parquet(
            one.folder / "examples.parquet"
        )
    comparison = compare(cells, resamples=500)
    estimates = [columns(block)["both vs cf"].content["similarity"] for block in comparison.blocks]
    alone = [estimate for estimate in estimates if estimate.excludes_zero]
    assert any(estimate.p_holm > 0.05 for estimate in alone)
    assert all(estimate.p_holm >= estimate.p for estimate in estimates)
    assert "% (*) [" in comparison.to_markdown()
    assert f"Holm's correction for the {comparison.differences} differences" in comparison.legend()
    assert {"p", "p_holm"} <= set(records(comparison)[0])


def test_floors_are_those_of_both(cells):
    [block] = compare(cells, resamples=100).blocks
    values = {name: column.content["similarity"].value for name, column in columns(block).items()}
    assert values["shuffled"] == pytest.approx(values["both"] - 0.2)
    assert values["constant"] == pytest.approx(values["both"] - 0.1)
    lead = columns(block)["both vs shuffled"].content["similarity"]
    assert lead.value == pytest.approx(100 * 0.2 / values["shuffled"])
    assert lead.excludes_zero


def test_a_failed_and_a_missing_cell_keep_the_others(cells, tmp_path):
    failed = cell(tmp_path / "none", "none", error="ValueError: loss is nan\n at | step 12")
    missing = cell(tmp_path / "random", "random")
    comparison = compare([*cells, failed, missing], resamples=100)
    [block] = comparison.blocks
    assert columns(block)["none"].content == "failed"
    assert columns(block)["random"].content == "missing"
    for text in (comparison.to_markdown(), comparison.to_terminal()):
        assert "failed" in text
        assert "missing" in text
        assert "f, encoder=none, seed=0: failed: ValueError: loss is nan at" in text
        assert "encoder=random, seed=0: missing: no examples.parquet" in text
    assert {row["status"] for row in records(comparison)} == {"ok", "failed", "missing"}
    assert columns(block)["both vs cf"].content["similarity"].users == 30


def test_without_both_differences_are_dashes_and_floors_the_first_encoders(cells, tmp_path):
    [cf, _, _] = cells
    comparison = compare([cf, cell(tmp_path / "absent", "both", error="RuntimeError: killed")], resamples=100)
    [block] = comparison.blocks
    assert list(columns(block)) == ["cf", "both", "both vs cf", "cf vs shuffled", "shuffled", "constant"]
    similarity = next(line for line in comparison.to_markdown().splitlines() if line.startswith("| Similarity"))
    assert similarity.split(" | ")[2:4] == ["failed", "—"]


def test_when_nothing_finished_there_is_still_a_table(tmp_path):
    comparison = compare(
        [cell(tmp_path, "cf", error="OSError: disk full"), cell(tmp_path / "x", "both")], resamples=100
    )
    assert "| ROUGE-Lsum | failed | missing | — |" in comparison.to_markdown()
    assert "OSError: disk full" in comparison.to_terminal()


def test_a_damaged_file_fails_its_own_cell_alone(cells):
    (cells[0].folder / "examples.parquet").write_bytes(b"PAR1 no more")
    comparison = compare(cells, resamples=100)
    assert columns(comparison.blocks[0])["cf"].content == "failed"
    assert "cannot be read" in comparison.problems[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_scores_that_are_no_numbers_fail_their_own_cell_alone(cells, bad):
    path = cells[0].folder / "examples.parquet"
    rows = pl.read_parquet(path)
    at = pl.int_range(pl.len()) == 3
    rows.with_columns(similarity=pl.when(at).then(pl.lit(bad)).otherwise("similarity")).write_parquet(path)
    comparison = compare(cells, resamples=100)
    user = rows["user_id"][3]
    [problem] = comparison.problems
    assert f"'similarity' for 1 of {len(rows)} rows, the first of user '{user}'; evaluate the run again." in problem
    assert columns(comparison.blocks[0])["cf"].content == "failed"
    assert columns(comparison.blocks[0])["content"].seeds == 1


def test_runs_on_other_data_are_told_apart_though_their_settings_are_the_same(tmp_path):
    from regen.evaluation.cells import run_cells

    for number, (encoder, data) in enumerate([("cf", "one"), ("both", "one"), ("cf", "other")]):
        folder = write_run(tmp_path / str(number))
        (folder / "run.json").write_text(json.dumps({"inputs": {"prepared": data}}))
        config = {"encoder": {"name": encoder}, "seed": 0, "feature": {"f": {"prompt": "why"}}}
        (folder / "config.yaml").write_text(json.dumps(config))
    blocks = compare(run_cells(tmp_path), resamples=100).blocks
    assert [block.title for block in blocks] == ["f · data=one", "f · data=other"]
    assert "both vs cf" not in columns(blocks[1])
    (tmp_path / "2" / "run.json").write_text(json.dumps({"inputs": {"prepared": "one"}}))
    with pytest.raises(ValueError, match="are both encoder=cf seed=0"):
        compare(run_cells(tmp_path), resamples=100)


def test_seeds_are_pooled_and_counted(tmp_path):
    cells = [
        cell(write_run(tmp_path / f"{encoder}{seed}", shift=shift + 0.01 * seed), encoder, seed)
        for encoder, shift in (("cf", 0.0), ("both", 0.1))
        for seed in range(3)
    ]
    [block] = compare(cells, resamples=200).blocks
    both = columns(block)["both"]
    one_seed = compare([cells[4]], resamples=200).blocks[0]  # the middle seed of both
    assert both.seeds == 3
    assert both.content["similarity"].value == pytest.approx(columns(one_seed)["both"].content["similarity"].value)
    assert "30 users, 3 seeds." in block.caption()
    assert "a claim needs three seeds" not in block.caption()
    assert "a claim needs three seeds" in one_seed.caption()
    failed = [*cells[:5], cell(tmp_path / "both2", "both", 2, error="ValueError: x")]
    caption = compare(failed, resamples=100).blocks[0].caption()
    assert "seeds: cf 3, both 2." in caption
    assert "both: seed 2 is failed; the others are pooled." in caption


def test_differences_are_over_the_users_that_both_have(tmp_path):
    cells = [
        cell(write_run(tmp_path / "cf", users=30), "cf"),
        cell(write_run(tmp_path / "both", users=30, first=10, shift=0.1), "both"),
    ]
    [block] = compare(cells, resamples=100).blocks
    difference = columns(block)["both vs cf"].content["similarity"]
    shared = [0.5 + 0.1 * np.sin(7.0 * i) for i in range(10, 30)]
    assert difference.value == pytest.approx(100 * 0.1 / np.mean(shared))
    assert difference.users == 20
    assert "both vs cf: only the 20 users that both have, of 30 and 30." in block.caption()
    assert "scored on different users (cf 30, both 30); each column is over its own." in block.caption()


def test_no_user_in_common_is_a_dash_with_its_reason(tmp_path):
    cells = [
        cell(write_run(tmp_path / "cf", users=5), "cf"),
        cell(write_run(tmp_path / "both", users=5, first=50), "both"),
    ]
    comparison = compare(cells, resamples=100)
    assert "both vs cf: no user in common." in comparison.to_markdown()
    assert {row["status"] for row in records(comparison) if row["column"] == "both vs cf"} == {"undefined"}


def test_three_users_give_a_table_with_a_warning(tmp_path):
    cells = [cell(write_run(tmp_path / name, users=3), name) for name in ("cf", "both")]
    assert "So few users (3 of at least 20)" in compare(cells, resamples=100).to_markdown()


def test_settings_that_vary_make_blocks_and_others_do_not(tmp_path):
    cells = [
        cell(write_run(tmp_path / f"{encoder}-{adapter}"), encoder, adapter=adapter, vertical="office")
        for adapter in ("linear", "mlp")
        for encoder in ("cf", "both")
    ]
    comparison = compare(cells, resamples=100)
    assert [block.title for block in comparison.blocks] == ["f · adapter=linear", "f · adapter=mlp"]
    assert {row["adapter"] for row in records(comparison)} == {"linear", "mlp"}
    assert "vertical" not in records(comparison)[0]


def test_a_run_on_two_features_is_told_from_runs_on_one(tmp_path):
    joint = Cell(write_run(tmp_path / "joint", features=("f", "g")), "cf", 0, {"feature": "f,g"})
    single = cell(write_run(tmp_path / "single"), "cf")
    titles = [block.title for block in compare([joint, single], resamples=100).blocks]
    assert titles == ["f · trained on=f+g", "g · trained on=f+g", "f"]


def test_one_seed_is_not_pooled_twice(cells, tmp_path):
    again = cell(write_run(tmp_path / "again"), "cf")
    with pytest.raises(ValueError, match="are both encoder=cf seed=0"):
        compare([*cells, again], resamples=100)
    assert columns(compare([*cells, cells[0]], resamples=100).blocks[0])["cf"].seeds == 1  # the same folder twice


def test_what_an_encoder_cost_stands_below_its_scores(cells, tmp_path):
    assert "Cost" not in compare(cells, resamples=100).to_markdown()
    again = write_run(tmp_path / "again")
    for folder, positions in ((cells[0].folder, 30), (again, 40), (cells[2].folder, 31)):
        (folder / TRAINED).write_text(json.dumps({"costs": {"positions": positions}}))
    (cells[0].folder / EVALUATED).write_text(json.dumps({"costs": {"prefill_ms": 2.5}}))
    comparison = compare([*cells, cell(again, "cf", seed=1)], resamples=100)
    markdown = comparison.to_markdown()
    assert "| Cost | cf | content | both |\n|---|---|---|---|\n| positions an example | 35 | — | 31 |" in markdown
    assert "| prefill of a narrative, ms | 2.5 | — | — |" in markdown
    row = next(line for line in comparison.to_terminal().splitlines() if line.startswith("positions an example"))
    assert row.removeprefix("positions an example").split() == ["35", "—", "31"]


def test_single_labels_are_in_the_csv_only(cells):
    comparison = compare(cells, resamples=100)
    assert "recovery_brand" in {row["metric"] for row in records(comparison)}
    assert "brand" not in comparison.to_markdown()


def test_the_terminal_table_of_three_encoders_fits_120_columns(cells):
    text = compare(cells, resamples=100).to_terminal()
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("Similarity") == 1  # one panel


def test_files_are_written_whole(cells, tmp_path):
    comparison = compare(cells, resamples=100)
    comparison.write(tmp_path / "grid")
    assert sorted(path.name for path in (tmp_path / "grid").iterdir()) == ["table.csv", "table.md"]
    assert (tmp_path / "grid" / "table.md").read_text() == comparison.to_markdown()


def test_no_cell_is_an_error():
    with pytest.raises(ValueError, match="0 cells"):
        compare([])


def test_what_another_system_wrote_is_a_column_of_every_block_with_its_own_floors(tmp_path):
    from regen.evaluation.cells import cells_beside

    cells = [
        cell(write_run(tmp_path / f"{encoder}-{adapter}"), encoder, adapter=adapter)
        for encoder in ("cf", "both")
        for adapter in ("linear", "mlp")
    ]
    theirs = write_run(tmp_path / "theirs", shift=0.05)
    rows = pl.read_parquet(theirs / "examples.parquet")
    rest = rows.filter(pl.col("system") == "model").with_columns(system=pl.lit("model_rest"))
    pl.concat([rows, rest]).write_parquet(theirs / "examples.parquet")
    comparison = compare([*cells, *cells_beside(cells, theirs, "encoder")], resamples=100)
    assert len(comparison.blocks) == 2
    for block in comparison.blocks:
        assert list(columns(block))[:3] == ["cf", "both", "theirs"]
        assert {"shuffled", "constant", "theirs shuffled", "theirs constant"} <= set(columns(block))
        both, other = (columns(block)[name].content["similarity"].value for name in ("both", "theirs"))
        assert other == pytest.approx(both + 0.05)


def test_predictions_of_other_features_are_refused(cells, tmp_path):
    from regen.evaluation.cells import cells_beside

    other = write_run(tmp_path / "theirs", features=("another",))
    with pytest.raises(ValueError, match="of feature another, the runs of f"):
        cells_beside(cells, other, "encoder")


def side(folder, need, *, seeds=3):
    """Run folders of one adapter, with both encoders, as training leaves them."""
    for encoder in ("cf", "both"):
        for seed in range(seeds):
            run = write_run(folder / f"{encoder}-{seed}", need=need if encoder == "both" else 0.5)
            config = {
                "encoder": {"name": encoder},
                "seed": seed,
                "feature": {"f": {"prompt": "why"}},
                "adapter": {"name": folder.name},
            }
            (run / "config.yaml").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("pattern", ["{}", "{}/*-?"])
def test_one_adapter_is_compared_with_another_encoder_by_encoder(tmp_path, monkeypatch, capsys, pattern):
    from regen.commands.evaluate import compare_sides

    monkeypatch.chdir(tmp_path)
    mlp, linear = (pattern.format(side(tmp_path / name, need).name) for name, need in (("mlp", 0.6), ("linear", 0.9)))
    compare_sides(mlp, linear, SimpleNamespace(resamples=200, seed=0))
    shown = capsys.readouterr().out
    assert "f · encoder=cf" in shown
    assert "worse" in shown
    [written] = (tmp_path / "outputs/comparisons").glob("*/table.csv")
    rows = [row for row in csv.DictReader(io.StringIO(written.read_text())) if row["metric"] == "need_recovery"]
    verdicts = {row["encoder"]: row["verdict"] for row in rows if row["column"] == f"{mlp} vs {linear}"}
    assert verdicts == {"cf": "not worse", "both": "worse"}


def test_what_cannot_be_compared_with_other_runs_is_refused(tmp_path):
    from regen.commands.evaluate import compare_sides

    mlp = str(side(tmp_path / "mlp", 0.6, seeds=1))
    with pytest.raises(FileNotFoundError, match="against=.*absent: matches neither"):
        compare_sides(mlp, str(tmp_path / "absent"), BOOTSTRAP)
    with pytest.raises(ValueError, match="are both"):
        compare_sides(mlp, mlp, BOOTSTRAP)


def swept(folder, key, **shifts):
    """Three seeds of one encoder for each value of a setting."""
    return [
        cell(write_run(folder / f"{value}-{seed}", shift=shift + 0.01 * seed), "mine", seed, **{key: value})
        for value, shift in shifts.items()
        for seed in range(3)
    ]


def test_columns_are_what_was_swept_and_are_compared_with_the_first_one(tmp_path):
    [block] = compare(swept(tmp_path, "adapter", linear=0.0, mlp=0.1), resamples=200).blocks
    assert [name for name in columns(block) if "vs" not in name][:2] == ["linear", "mlp"]
    difference = columns(block)["mlp vs linear"]
    assert difference.verdicts
    assert difference.estimate(METRICS["similarity"]).low > 0
    [block] = compare(swept(tmp_path, "adapter", linear=0.0, mlp=0.1), columns=Columns(reference="mlp")).blocks
    assert "linear vs mlp" in columns(block)


def test_numbers_stand_in_their_order(tmp_path):
    cells = swept(tmp_path, "adapter.lr", **{"0.03": 0.0, "1e-3": 0.1, "0.01": 0.2})
    comparison = compare(cells, resamples=100)
    assert comparison.key == "adapter.lr"
    assert [c.name for c in comparison.blocks[0].columns if c.kind == "model"] == ["1e-3", "0.01", "0.03"]
    assert {"0.01 vs 1e-3", "0.03 vs 1e-3"} <= columns(comparison.blocks[0]).keys()


def test_two_swept_settings_make_an_overview_of_rows_and_columns(tmp_path):
    cells = []
    for factors in ("32", "128"):
        for adapter, shift in (("linear", 0.0), ("mlp", 0.1)):
            folder = write_run(tmp_path / f"{factors}-{adapter}", shift=shift)
            cells.append(cell(folder, "both", **{"cf.model.factors": factors, "adapter": adapter}))
    comparison = compare(cells, columns=Columns("adapter"), resamples=100)
    assert [block.settings for block in comparison.blocks] == [{"cf.model.factors": "32"}, {"cf.model.factors": "128"}]
    [(title, rows)] = comparison.overviews()
    assert title == "Need recovery of f by cf.model.factors and adapter"
    assert [row[0] for row in rows] == ["cf.model.factors \\ adapter", "32", "128"]
    assert rows[0][1:] == ["linear", "mlp"]
    assert all(re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", text) for row in rows[1:] for text in row[1:])
    assert comparison.to_markdown().startswith(f"### {title}\n")
    assert title in comparison.to_terminal()


def test_the_joint_encoder_is_known_by_its_parts(tmp_path):
    parts = {"price": ("price",), "cf": ("cf",), "all_of_it": ("cf", "price")}
    cells = [
        replace(cell(write_run(tmp_path / f"{name}-{seed}"), name, seed), parts=of)
        for name, of in parts.items()
        for seed in range(3)
    ]
    [block] = compare(cells, resamples=100).blocks
    assert {"all_of_it vs cf", "all_of_it vs price", "all_of_it vs the better one"} <= columns(block).keys()


def test_a_setting_in_which_all_agree_cannot_be_the_columns(cells):
    with pytest.raises(ValueError, match="columns=adapter: all runs have the same value. They differ in encoder"):
        compare(cells, columns=Columns("adapter"))
    with pytest.raises(ValueError, match="reference=text is none of the columns: cf, content, both"):
        compare(cells, columns=Columns(reference="text"))


def test_many_columns_are_rows_instead(tmp_path):
    rates = {f"{at / 100}": 0.01 * at for at in range(1, 15)}
    cells = [cell(write_run(tmp_path / rate, shift=shift), "mine", **{"lr": rate}) for rate, shift in rates.items()]
    comparison = compare(cells, resamples=100)
    table = comparison.to_markdown()
    assert "|  | Need recovery | Similarity |" in table
    assert len(re.findall(r"^\| 0\.\d+ \| 0\.\d{3} \[", table, re.MULTILINE)) == 14
    assert max(map(len, comparison.to_terminal().splitlines())) <= 120
    assert "0.14 vs 0.01" in comparison.to_csv()


def test_models_that_never_differ_do_not_promise_to_find_any_difference(tmp_path):
    same = [cell(write_run(tmp_path / name, need=0.0), name) for name in ("cf", "both")]
    assert "would be found" not in compare(same, resamples=100).blocks[0].caption()
    apart = [cell(write_run(tmp_path / f"{name}2", need=need), name) for name, need in {"cf": 0.5, "both": 0.7}.items()]
    assert "would be found" in compare(apart, resamples=100).blocks[0].caption()
