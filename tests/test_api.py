"""The library as a notebook uses it: what the README's Python example says, run."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.errors import ConfigCompositionException, HydraException
from small import SMALL

import regen

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def small(tmp_path):
    return [*SMALL, "encoder=both", "trainer.accelerator=cpu", f"paths.data_dir={tmp_path}/data"]


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*num_workers", "ignore:The number of training batches")
@pytest.mark.usefixtures("no_sentence_encoder")
def test_the_readmes_example_runs(small, tmp_path, monkeypatch):
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "compose" in block
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    compose = regen.compose
    monkeypatch.setattr(regen, "compose", lambda overrides: compose([*overrides, *small]), raising=False)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["trainer"].global_step > 0
    sequences = names["sequences"]
    item = sequences[0]
    assert item["history"].shape == (len(names["data"].splits["train"].examples[0].rows), 16 + 384)
    assert item["history"].dtype == torch.float32
    rows = sequences.to_huggingface()
    assert len(rows) == len(sequences)
    assert torch.equal(torch.tensor(rows[0]["history"]), item["history"])
    assert {name: rows[0][name] for name in ("user_id", "text")} == {name: item[name] for name in ("user_id", "text")}


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*num_workers", "ignore:The number of training batches")
def test_by_hand_without_any_config(tiny_lm):
    import numpy as np

    from regen.data.datamodule import NarrativeDataset
    from regen.data.histories import Example
    from regen.models.adapter import LinearAdapter
    from regen.models.soft_token_lm import SoftTokenLM

    def split(users):
        rows = [
            Example(f"u{user}", "praise", None, f"Likes {user}.", np.arange(1 + user % 4), np.zeros(1 + user % 4, bool))
            for user in range(users)
        ]
        vectors = lambda example, draw: np.ones((len(example.rows), 8), dtype=np.float32)  # noqa: E731
        return NarrativeDataset(rows, vectors, tokenizer=tiny_lm.tokenizer, prompts={"praise": "Why:"}, window=512)

    data = regen.NarrativeDataModule(
        {"train": split(16), "validation": split(4), "test": split(4)}, batch_size=4, eval_batch_size=4
    )
    lm = tiny_lm.working_copy(trainable=True).model
    model = SoftTokenLM(lm, LinearAdapter(8, tiny_lm.width), bos_token_id=tiny_lm.tokenizer.bos_token_id)
    module = regen.NarrativeModule(model, adapter_lr=0.01, lm_lr=0.001)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert trainer.global_step == 8


def test_a_wrong_override_is_refused_as_on_the_command_line():
    with pytest.raises(ConfigCompositionException, match="adapter.lr=-1.0 has to be above 0 to 10"):
        regen.compose(["adapter.lr=-1"])
    with pytest.raises(HydraException):
        regen.compose(["adpter=linear"])
    with pytest.raises(AttributeError, match="has no attribute 'compse'"):
        regen.compse  # noqa: B018


def test_groups_of_ones_own_are_found(tmp_path):
    (tmp_path / "cf").mkdir()
    (tmp_path / "cf" / "mine.yaml").write_text("name: mine\nalpha: 1.0\nmodel:\n  _target_: some.Model\n")
    assert regen.compose(["cf=mine"], config_dir=tmp_path).cf.model.target == "some.Model"
