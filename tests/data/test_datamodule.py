"""Batches: every example once, similar lengths together, shares of ranks, and a state to go on from."""

from types import SimpleNamespace

import numpy as np
import pytest

from regen.data.datamodule import LengthBatches, NarrativeDataModule, NarrativeDataset, ResumableLoader
from regen.data.histories import Example

LENGTHS = np.random.default_rng(0).integers(5, 120, size=203).tolist()


def test_every_example_once_in_an_epoch_and_another_order_in_the_next():
    sampler = LengthBatches(LENGTHS, 4, shuffle=True, seed=3)
    first = list(sampler)
    assert sorted(index for batch in first for index in batch) == list(range(203))
    sampler.epoch = 1
    assert list(sampler) != first
    assert first == list(LengthBatches(LENGTHS, 4, shuffle=True, seed=3))


def test_lengths_in_a_batch_are_similar():
    spread = [
        max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in LengthBatches(LENGTHS, 4, True)
    ]
    assert np.mean(spread) < 10  # random batches of four spread over about 70
    assert len({tuple(batch) for batch in LengthBatches(LENGTHS, 4, True)}) == 51


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("examples", "batch", "world"), [(202, 4, 2), (7, 6, 2), (58, 4, 4), (3, 4, 2), (9, 8, 4)])
def test_ranks_share_every_batch(examples, batch, world, shuffle):
    """Each rank takes part in every step; only training leaves out what cannot be shared equally."""
    samplers = [LengthBatches(LENGTHS[:examples], batch, shuffle, rank=rank, world_size=world) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    assert all(len(share) == len(sampler) > 0 for share, sampler in zip(shares, samplers, strict=True))
    assert all(part for share in shares for part in share)
    seen = [index for share in shares for part in share for index in part]
    assert len(set(seen)) == len(seen) == (examples - examples % world if shuffle else examples)


@pytest.mark.parametrize(("processes", "left_out"), [(1, 0), (2, 0), (4, 2)])
def test_examples_that_processes_cannot_share_are_told_of(processes, left_out, caplog):
    module = NarrativeDataModule({"train": dataset(58, max_narrative_tokens=5)}, batch_size=4, eval_batch_size=4)
    module.trainer = SimpleNamespace(global_rank=0, world_size=processes, overfit_batches=0)
    module.train_dataloader()
    assert (f"{left_out} of 58 training examples are left out of each epoch" in caplog.text) == (left_out > 0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_empty_epoch_is_an_error(shuffle):
    with pytest.raises(ValueError, match="1 examples are too few for 2 processes"):
        LengthBatches(LENGTHS[:1], 4, shuffle, world_size=2)


def test_a_loader_counts_its_batches_without_forming_them(monkeypatch):
    formed = []
    monkeypatch.setattr(LengthBatches, "batches", lambda self: formed.append(1))
    assert len(LengthBatches(LENGTHS, 4, True)) == 51
    assert not formed


def test_a_batch_that_ranks_cannot_share():
    with pytest.raises(ValueError, match="training.batch_size=5 .* multiple of the number of processes, 2"):
        LengthBatches(LENGTHS, 5, True, world_size=2)


class Words:
    """A tokenizer that gives every word the number of its letters."""

    pad_token_id, eos_token_id = 0, 99

    def __call__(self, texts, add_special_tokens, split_special_tokens):
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def dataset(count=9, **options):
    examples = [
        Example(
            f"u{i}",
            "user_profile",
            None,
            "one three five" + " more" * i,
            np.arange(i % 3 + 1),
            np.zeros(i % 3 + 1, bool),
        )
        for i in range(count)
    ]
    vectors = SimpleNamespace(dim=2)
    vectors = lambda example, draw: np.full((len(example.rows), 2), draw % 7 + 1, dtype=np.float32)  # noqa: E731
    return NarrativeDataset(
        examples, vectors, tokenizer=Words(), prompts={"user_profile": "to the point"}, window=64, **options
    )


def test_collate_pads_histories_left_and_narratives_right():
    batch = dataset().collate([0, 2])
    assert batch.history_mask.tolist() == [[False, False, True], [True, True, True]]
    assert batch.fused[0, :2].abs().sum() == 0
    assert batch.prompt.tolist() == [[2, 3, 5]] * 2
    assert batch.target.tolist() == [[3, 5, 4, 99, 0, 0], [3, 5, 4, 4, 4, 99]]
    assert batch.target_mask.sum(dim=1).tolist() == [4, 6]


def test_cut_narratives_still_end():
    assert dataset(max_narrative_tokens=2).targets[5].tolist() == [3, 5, 99]


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_loader_goes_on_with_the_very_next_batch(stop):
    def loader():
        return ResumableLoader(dataset(), LengthBatches(dataset().lengths, 2, shuffle=True, seed=1), num_workers=0)

    def epochs(of, count):
        for _ in range(count):
            for step, batch in enumerate(iter(of), start=of.batches.first):
                yield batch.examples.tolist(), float(batch.fused.max())
                if step == len(of.batches) - 1:
                    break

    whole = list(epochs(loader(), 2))
    assert {draw for _, draw in whole} == {1.0, 2.0}  # each epoch draws noise anew
    stopped, reading = loader(), []
    for item in epochs(stopped, 2):
        reading.append(item)
        if len(reading) == stop:
            state = stopped.state_dict()
            break
    resumed = loader()
    resumed.load_state_dict(state)
    reading += list(epochs(resumed, 2 - state["epoch"]))
    assert reading == whole
