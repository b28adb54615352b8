"""Where things compute: one setting decides it. Tests marked `gpu` need CUDA; REGEN_TEST_DEVICE=cpu runs them on a CPU."""

import copy
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from regen import pipeline
from regen.evaluation.evaluate import evaluate_run
from regen.generation.narratives import generate_narratives
from regen.pipeline import train_and_evaluate
from regen.runtime.device import device_of, encoding_device
from regen.serving import NarrativeModel
from regen.training.module import NarrativeModule
from regen.training.run import LoadedRun

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
DEVICE = os.environ.get("REGEN_TEST_DEVICE", "cuda")
ACCELERATOR = {"cuda": "gpu"}.get(DEVICE, DEVICE)
gpu = [pytest.mark.gpu]
gpu.append(
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="this machine has no CUDA device")
)


def on_gpu(function):
    for mark in gpu:
        function = mark(function)
    return function


def test_the_device_follows_the_setting_and_what_the_machine_has(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {device_of(name).type for name in ("cpu", "auto")} == {"cpu"}
    assert not caplog.records
    assert device_of("gpu").type == "cpu"
    assert "has no CUDA device: computing on the CPU in float32" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert {str(device_of(name)) for name in ("gpu", "cuda", "auto")} == {"cuda:0"}
    assert device_of("cpu").type == "cpu"


def test_a_run_of_a_gpu_is_evaluated_on_a_machine_without_one(small_config, caplog):
    folder, _ = train_and_evaluate(small_config("trainer.max_steps=2"))
    record = json.loads((folder / "evaluation.json").read_text())
    assert (record["device"], record["precision"]) == ("cpu", "float32")
    assert json.loads((folder / "run.json").read_text())["device"] == "cpu"
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("accelerator: cpu", "accelerator: gpu"))
    before = (folder / "predictions.jsonl").read_text()
    if not torch.cuda.is_available():
        evaluate_run(pipeline.load_folder(folder), reopen=pipeline.load_folder)
        assert "has no CUDA device" in caplog.text
        assert (folder / "predictions.jsonl").read_text() == before


def test_out_of_memory_is_a_message_that_names_what_was_asked_and_the_fix(small_config, tmp_path, monkeypatch):
    def fail(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="Out of memory: ") as caught:
        patched.setattr(NarrativeModule, "training_step", fail)
        train_and_evaluate(small_config())
    said = str(caught.value)
    assert "training.batch_size=4, up to " in said
    assert "positions a row, lm=tiny with 1," in said
    for setting in ("training.batch_size", "data.max_history", "training.gradient_checkpointing=true"):
        assert setting in said.partition("Lower")[2]

    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("regen.generation.narratives.generate_narratives", no_room)
    with pytest.raises(
        ValueError, match="Out of memory: evaluation.batch_size=128, 6 new tokens a row. Lower evaluation"
    ):
        train_and_evaluate(small_config())
    assert list(tmp_path.glob("runs/*/model.safetensors")), "what was trained is lost"


def test_checkpointed_gradients_are_the_same(small_config, tmp_path, monkeypatch):
    """The layers are computed again for the gradient, and the run is the same one."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, forward = [], LlamaMLP.forward

    def counted(self, *arguments, **options):
        calls.append(torch.is_grad_enabled())
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain, loss = train_and_evaluate(small_config("tuning=lora", "score=false", without="tuning"))
    once = sum(calls)
    options = ["score=false", "training.gradient_checkpointing=true", f"paths.runs_dir={tmp_path}/checkpointed"]
    folder, again = train_and_evaluate(small_config("tuning=lora", *options, without="tuning"))
    assert sum(calls) - once == 2 * once > 0
    assert again == pytest.approx(loss, rel=1e-5)
    assert folder.name == plain.name


def test_every_layer_is_compiled_while_the_run_trains_and_not_afterwards(small_config, monkeypatch):
    """With `torch.compile` replaced by a wrapper; the slow test below compiles."""
    calls = []

    def compile_plainly(call, **options):
        assert options == {"dynamic": True}
        return lambda *arguments, **named: calls.append(call) or call(*arguments, **named)

    monkeypatch.setattr(torch, "compile", compile_plainly)
    folder, _ = train_and_evaluate(small_config("training.compile=true", "trainer.max_steps=2"))
    assert len(set(calls)) == 2  # layers of the LM
    trained = len(calls)
    pipeline.load_folder(folder)
    train_and_evaluate(small_config("training.compile=true", "trainer.max_steps=2", "evaluation.resamples=200"))
    assert len(calls) == trained


def test_sentence_encoders_compute_where_the_run_does(small_config, monkeypatch):
    """A run encodes on its own device, also on a machine with a GPU; other commands use the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert str(encoding_device()) == "cuda:1"
    seen = []
    monkeypatch.setattr("regen.pipeline.open_run", lambda config: seen.append(encoding_device()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_and_evaluate(small_config())
    assert [device.type for device in seen] == ["cpu"]
    assert str(encoding_device()) == "cuda:1"


@pytest.mark.parametrize(("command", "options"), [("serve", ["checkpoint=nothing"]), ("demo", [])])
def test_service_and_demo_encode_on_their_device(command, options, monkeypatch, logs_as_they_were):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    seen = []
    serve = {"serve": "regen.serving.server.serve", "demo": "regen.serving.demo.serve.serve"}[command]
    monkeypatch.setattr(serve, lambda *arguments, **named: seen.append(encoding_device().type))
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(sys, "argv", [command, *options, f"device={device}"])
        import_module(f"regen.commands.{command}").run()
    assert seen == ["cpu", "cuda"]


def test_adamw_is_fused_on_a_gpu_and_clips_in_mixed_precision(small_config, monkeypatch):
    """On a CPU, which has the fused form too; the same clipped steps give the same loss."""
    made = []
    adamw = torch.optim.AdamW.__init__
    monkeypatch.setattr(
        torch.optim.AdamW, "__init__", lambda self, *a, **o: made.append(o.get("fused")) or adamw(self, *a, **o)
    )
    options = ["score=false", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.1"]
    _, loss = train_and_evaluate(small_config(*options))
    monkeypatch.setattr("regen.training.assembly.device_of", lambda accelerator: torch.device("cuda"))
    _, fused = train_and_evaluate(small_config(*options, "force=true"))
    assert made == [None, True]
    assert fused == pytest.approx(loss, rel=1e-3)


COMPILED = """
import sys, torch
from small import SMALL, quick_embeddings
from regen.config.objects import compose
from regen.pipeline import train_and_evaluate

folder, losses = sys.argv[1], []
options = [*SMALL, "encoder=cf", "tuning=lora", f"paths.data_dir={folder}/data"]
with quick_embeddings():
    for on in ("false", "true"):
        run = [f"training.compile={on}", f"paths.runs_dir={folder}/{on}"]
        losses.append(train_and_evaluate(compose([*options, *run]))[1])
print(*losses, torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow  # compiles C++; in a process of its own, because the shape checks of the tests cannot be compiled
def test_compiled_layers_give_the_same_loss_by_two_graphs(tmp_path):
    """One graph for training and one for validation serve all layers and lengths."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", COMPILED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    plain, compiled, graphs = done.stdout.split()[-3:]
    assert float(compiled) == pytest.approx(float(plain), rel=1e-5)
    assert graphs == "2"


@pytest.fixture
def loaded(small_config):
    """A trained run on the CPU, with both encoders and LoRA."""
    options = ["encoder=both", "tuning=lora", "adapter=mlp", "trainer.max_steps=8"]
    folder, _ = train_and_evaluate(small_config(*options, without="tuning"))
    return pipeline.load_folder(folder)


@on_gpu
def test_loss_and_gradients_are_those_of_the_cpu(loaded):
    """Within 1e-3 of the largest gradient: matrix products in float32 may use another order of sums."""
    train = loaded.data.splits["train"]
    batch, results = train.collate(range(8)), []
    for device in ("cpu", DEVICE):
        model = copy.deepcopy(loaded.model).to(device).train()
        loss, tokens = model(batch.on(torch.device(device)))
        (loss / tokens).backward()
        gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
        results.append((float(loss.detach()), gradients))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for name, expected in results[0][1].items():
        largest = float(expected.abs().max())
        torch.testing.assert_close(results[1][1][name], expected, rtol=1e-3, atol=1e-3 * largest + 1e-9)


@on_gpu
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.0}], ids=["decoder", "generate"])
def test_greedy_texts_are_those_of_the_cpu(loaded, options):
    texts = []
    for device in ("cpu", DEVICE):
        written = generate_narratives(
            copy.deepcopy(loaded.model).to(device),
            loaded.data.splits["test"],
            tokenizer=loaded.lm.tokenizer,
            generation={"max_new_tokens": 12, **options},
            batch_size=16,
        )
        texts.append(written["prediction"].to_list())
    assert texts[0] == texts[1]


@on_gpu
def test_a_run_trains_generates_and_is_served_on_the_device(small_config, tmp_path):
    options = [f"trainer.accelerator={ACCELERATOR}", "encoder=both", "trainer.max_steps=8", "training.num_workers=0"]
    folder, _ = train_and_evaluate(small_config(*options))
    assert json.loads((folder / "run.json").read_text())["device"].startswith(DEVICE)
    assert json.loads((folder / "evaluation.json").read_text())["device"].startswith(DEVICE)
    reopened: LoadedRun = pipeline.load_folder(folder)
    assert reopened.model.device.type == DEVICE
    model = NarrativeModel.from_run(folder).to(DEVICE)
    model.save_pretrained(tmp_path / "exported")
    history = [{"item_id": "i0000001", "rating": 5, "review": "Good."}]
    assert (
        model.narrate(history).text
        == NarrativeModel.from_pretrained(tmp_path / "exported").to(DEVICE).narrate(history).text
    )


@on_gpu
def test_a_killed_run_reaches_the_loss_of_a_whole_one(small_config, tmp_path, monkeypatch):
    """Not its bits: sums of atomics on CUDA have no fixed order."""

    class Killed(Exception):
        pass

    options = [f"trainer.accelerator={ACCELERATOR}", "training.checkpoint_seconds=0", "training.num_workers=0"]
    _, whole = train_and_evaluate(small_config(*options))
    step, killed = NarrativeModule.training_step, small_config(*options, f"paths.runs_dir={tmp_path}/killed")

    def dies(self, batch, batch_idx):
        if self.global_step == 5:
            raise Killed
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(NarrativeModule, "training_step", dies)
        train_and_evaluate(killed)
    assert train_and_evaluate(killed)[1] == pytest.approx(whole, rel=1e-3)


@on_gpu
def test_a_training_step_does_not_wait_for_the_device(loaded):
    """CUDA's own check raises at a synchronisation between batches that were laid out and moved before."""
    module = NarrativeModule(loaded.model.train(), adapter_lr=1e-3, lm_lr=1e-3)
    data, seen = loaded.data, []

    class Strict(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 2 and DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            seen.append(batch_idx)

    trainer = Trainer(
        accelerator=ACCELERATOR,
        max_steps=4,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Strict()],
    )
    trainer.fit(module, data)
    assert seen == [0, 1, 2, 3]
