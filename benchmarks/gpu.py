"""What the GPU issue asks for, in one command: training, forming batches, generation, start-up, a large LM.

    python benchmarks/gpu.py [device=cuda] [lm=smollm2] [examples=512] [users=500] [large=true] [start=true]

Times are medians of repeats with the device synchronised before and after. Training is the step of `trainer=gpu` (bf16,
LoRA, ragged examples) for batches of 4, 32 and 128, plain and compiled, as a share of the rate of the LM's own matrix
shapes. The large LM has the shape of a Llama of about 1.2 billion parameters and random weights. `device=cpu lm=tiny
large=false` checks the script itself. The last lines are a table in Markdown with the card and the versions.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from harness import FOLDER, Ragged, arguments, ragged
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from regen.generation.narratives import decode_rows
from regen.models.language_model import LanguageModel, hold_frozen_in_bfloat16
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.compiled import compiled_layers
from regen.runtime.costs import Stopwatch
from regen.training.assembly import build_model

BATCHES = (4, 32, 128)
REPEATS = 5
NEW = 48  # tokens of each narrative that generation is timed on
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}


def synchronised(device: str, work: Callable[[], object]) -> float:
    """Median seconds of repeats, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(lm: LanguageModel, positions: int, device: str) -> float:
    """Flop/s of one layer's products in bfloat16 at that many rows, forward and for the input's gradient."""
    layers = [
        m.weight.detach().to(device, torch.bfloat16) for m in _first_layer(lm).modules() if isinstance(m, nn.Linear)
    ]
    inputs = {
        width: torch.randn(positions, width, device=device, dtype=torch.bfloat16) for w in layers for width in w.shape
    }

    def products() -> None:
        for weight in layers:
            nn.functional.linear(inputs[weight.shape[1]], weight)
            torch.matmul(inputs[weight.shape[0]], weight)

    return 4 * positions * sum(weight.numel() for weight in layers) / synchronised(device, products)


def _first_layer(lm: LanguageModel) -> nn.Module:
    layer: nn.Module = lm.model.get_decoder().layers[0]
    return layer


def train_step(world: Ragged, size: int, device: str, *, compiled: bool = False) -> tuple[float, float, float]:
    """Milliseconds of a step, its share of the matrix rate, and GiB at the peak."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = world.model().train()
    hold_frozen_in_bfloat16(model.lm)
    model.to(device)
    if world.cfg.training.gradient_checkpointing:
        model.causal_lm.activation_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=device == "cuda")
    batch = world.dataset.collate(range(size))
    layout, batch = model.layout(batch), batch.on(torch.device(device))
    layout = type(layout)(layout.order.to(device), layout.predicts.to(device), layout.targets.to(device))
    batch.layout = layout

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss, tokens = model(batch)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with compiled_layers(model.decoder.layers) if compiled else nullcontext():
        seconds = synchronised(device, step)
    positions = sum(world.dataset.lengths[:size])
    layers = len(world.lm.model.get_decoder().layers) * sum(
        m.weight.numel() for m in _first_layer(world.lm).modules() if isinstance(m, nn.Linear)
    )
    head = world.lm.model.get_output_embeddings().weight.numel() * sum(map(len, world.dataset.targets[:size]))
    share = 4 * (positions * layers + head) / seconds / matrix_rate(world.lm, positions, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    return 1000 * seconds, share, peak


def generation(model: SoftTokenLM, world: Ragged, rows: int, device: str) -> tuple[float, float, int]:
    """Tokens a second of ours and of `generate` at 128 rows, and for how many of these users both wrote the same."""
    end, users = world.lm.tokenizer.pad_token_id, len(world.dataset)
    limits, usual = [NEW] * users, min(128, users)
    ours: dict[int, list[int]] = {}

    def write() -> None:
        ours.update(decode_rows(model, world.dataset, limits=limits, stop_ids={-1}, rows=rows, watch=Stopwatch()))

    batch = world.dataset.collate(range(usual)).on(torch.device(device))
    config = GenerationConfig(
        do_sample=False, eos_token_id=None, pad_token_id=end, max_new_tokens=NEW, min_new_tokens=NEW
    )
    theirs: list[list[int]] = []

    def generate() -> None:
        theirs[:] = model.generate(batch, config).tolist()

    with torch.no_grad():
        rate, usual_rate = users * NEW / synchronised(device, write), usual * NEW / synchronised(device, generate)
    return rate, usual_rate, sum(ours[user] == theirs[user] for user in range(usual))


def large_lm() -> LanguageModel:
    """A Llama of about 1.2 billion random parameters over the default LM's tokens."""
    tokenizer = ragged(4, "encoder=both").lm.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **LARGE,
    )
    return LanguageModel("llama_1b", LlamaForCausalLM(config).eval(), tokenizer)


def start_up(device: str) -> float:
    """Seconds from the command to the end of its first step, with artefacts and converted weights present."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "trainer.max_steps=1",
            "score=false",
            f"paths.runs_dir={folder}/runs",
            "trainer.enable_progress_bar=false",
        ]
        options += ["trainer=gpu"] if device == "cuda" else ["lm=tiny"]
        times = []
        for _ in range(2):  # the first builds what is missing
            started = time.perf_counter()
            subprocess.run([sys.executable, "train.py", "force=true", *options], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return times[-1]


def measure(
    device: str = "cuda",
    lm: str = "smollm2",
    examples: int = 512,
    users: int = 500,
    large: str = "true",
    start: str = "true",
) -> list[tuple[str, str]]:
    """Every line of the table: what, and its figure."""
    lines = []
    world = ragged(examples, "encoder=both", f"lm={lm}")
    for size in BATCHES:
        for compiled in (False, True) if size <= examples else ():
            milliseconds, share, peak = train_step(world, size, device, compiled=compiled)
            lines.append(
                (
                    f"training step, batch {size}" + (", training.compile=true" if compiled else ""),
                    f"{milliseconds:.1f} ms, {share:.3f} of the matrix rate, {peak:.1f} GiB",
                )
            )
    forming = synchronised("cpu", lambda: world.dataset.collate(range(4)))
    lines.append(("forming a batch of 4", f"{1000 * forming:.1f} ms"))
    torch.manual_seed(0)
    test = ragged(users, "encoder=both", f"lm={lm}", narrative=NEW)
    model = test.model().eval().to(device)
    for rows in (128, users):
        rate, usual, same = generation(model, test, rows, device)
        lines.append(
            (
                f"generation, {users} users, {rows} rows",
                f"{rate:,.0f} tokens/s; generate {usual:,.0f}; {same} texts equal",
            )
        )
    if start == "true":
        lines.append(("from command to the end of a step", f"{start_up(device):.1f} s"))
    if large == "true":
        big = Ragged(world.cfg, large_lm(), world.dataset)
        for compiled in (False, True):
            milliseconds, share, peak = train_step(big, 16, device, compiled=compiled)
            lines.append(
                (
                    "1.2 B, LoRA, batch 16" + (", training.compile=true" if compiled else ""),
                    f"{milliseconds:.0f} ms, {share:.3f} of the matrix rate, {peak:.1f} GiB",
                )
            )
        model = build_model(big.cfg, big.datamodule(), big.lm, start=False).eval().to(device, torch.bfloat16)
        bytes_read = sum(parameter.nbytes for parameter in model.lm.parameters())
        rate, usual, _ = generation(model, Ragged(test.cfg, big.lm, test.dataset.part(0, 128)), 128, device)
        lines.append(
            (
                "1.2 B, generation, 128 rows",
                f"{rate:,.0f} tokens/s; {rate / 128 * bytes_read / 1e9:,.0f} GB/s of weights",
            )
        )
    return lines


def card(device: str) -> str:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{name}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


if __name__ == "__main__":
    given = arguments(sys.argv[1:], device="cuda", lm="smollm2", examples=512, users=500, large="true", start="true")
    if given["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA device. device=cpu lm=tiny large=false checks the script itself.")
    table = measure(**given)
    rows = [f"| {what} | {figure} |" for what, figure in table]
    text = "\n".join(
        [f"{card(given['device'])}: `python benchmarks/gpu.py`", "", "| what | measured |", "|---|---|", *rows]
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    Path(FOLDER, "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text)
