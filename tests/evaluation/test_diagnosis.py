"""The diagnosis of a run: both files, from the run's own predictions, scores and weights."""

import json

import pytest
import torch

from regen.commands.evaluate import evaluate_from_config
from regen.config.objects import compose, plain
from regen.data.prepare import load_tables
from regen.evaluation.swap import with_interaction
from regen.pipeline import build_inputs, diagnose, open_run, train_and_evaluate, vectors_of
from regen.training.assembly import build_data, dataset_maker

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
TINY = ["source.narrated_users=50", "trainer.max_steps=1"]


def estimates(rows, **where):
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def evaluated(*overrides):
    return compose(overrides, root="evaluate")


def test_a_run_that_knows_no_history_is_diagnosed_as_such(small_config, capsys):
    folder, _ = train_and_evaluate(small_config(*TINY, "encoder=none"))
    files = {name: (folder / name).stat().st_mtime_ns for name in ("predictions.jsonl", "scores.json")}
    evaluation = json.loads((folder / "evaluation.json").read_text())["settings"]
    settings = [f"evaluation.{name}={evaluation[name]}" for name in ("resamples", "batch_size")]
    settings.append(f"evaluation.generation.max_new_tokens={evaluation['generation']['max_new_tokens']}")
    evaluate_from_config(evaluated(f"run={folder}", "diagnose=true", *settings))
    report = (folder / "diagnosis.md").read_text()
    assert report in capsys.readouterr().out
    assert files == {name: (folder / name).stat().st_mtime_ns for name in files}, "nothing was scored anew"
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["run"] == folder.name
    for position in ("final", "other"):
        changed, similarity = (
            estimates(found["swap"]["summary"], position=position, measure=measure)[0]
            for measure in ("changed", "similarity")
        )
        assert (changed["value"], changed["high"]) == (0, 0)
        assert similarity["value"] == pytest.approx(1)
    scores = json.loads((folder / "scores.json").read_text())["purchase_reason"]
    own = estimates(found["memorisation"]["summary"], of="predictions", measure="similarity")[0]
    assert own["value"] == pytest.approx(scores["similarity"]["model"]["value"], abs=1e-4)
    seen = estimates(found["slices"], attribute="items_seen", measure="bleu", system="model")
    assert sum(row["examples"] for row in seen) == scores["bleu"]["model"]["users"]
    assert {row["system"] for row in found["slices"]} == {"model", "shuffled", "constant"}
    assert "### purchase_reason: Interactions in the history" in report
    references = estimates(found["memorisation"]["summary"], of="references", measure="longest")
    assert all(row["value"] > 2 for row in references), "templates are shared"
    assert "| Names the new item's trait, after |" in report
    assert " nan" not in report


@pytest.mark.parametrize("encoder", ["cf", "text"])
def test_swapped_examples_become_a_dataset_as_the_run_had_it(small_config, tmp_path, encoder):
    cfg = small_config(*TINY, f"encoder={encoder}", "data.max_narrative_tokens=7")
    inputs, lm = build_inputs(cfg), cfg.lm.build()
    vectors = vectors_of(cfg, inputs)
    test = build_data(cfg, inputs, vectors, lm).splits["test"]
    make = dataset_maker(cfg, load_tables(inputs.prepared.path), vectors, lm)
    same = make(test.examples)
    assert same.lengths == test.lengths
    every = range(len(test))
    before = test.collate(every)
    after = same.collate(every)
    assert all(torch.equal(getattr(after, name), tensor) for name, tensor in vars(before).items() if tensor is not None)
    donor = int(test.examples[-1].rows[-1])
    swapped = make([with_interaction(one, len(one.rows) - 1, donor) for one in test.examples[:-1]])
    entering = "prompt" if encoder == "text" else "fused"
    item_of = load_tables(inputs.prepared.path).interactions["item_id"]
    others = [at for at in range(len(swapped)) if item_of[int(test.examples[at].rows[-1])] != item_of[donor]]
    assert others
    for at in others:
        one, other = (getattr(dataset.collate([at]), entering) for dataset in (test, swapped))
        assert one.shape != other.shape or not torch.equal(one, other)


def test_what_cannot_be_diagnosed_is_named(small_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        diagnose(tmp_path)
    with pytest.raises(ValueError, match="diagnose=true takes run=FOLDER or runs=FOLDER alone; got predictions"):
        evaluate_from_config(evaluated("predictions=theirs.jsonl", "diagnose=true"))
    run = open_run(small_config(*TINY))
    with pytest.raises(FileNotFoundError, match="not trained and evaluated yet"):
        diagnose(run.folder)
    for name in ("model.safetensors", "predictions.jsonl", "examples.parquet", "scores.json"):
        (run.folder / name).touch()
    settings = {"predictions": "of other weights", "settings": plain(run.config.evaluation)}
    (run.folder / "evaluation.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="scores were not made with its weights"):
        diagnose(run.folder)
