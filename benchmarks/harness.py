"""What all benchmarks share: a line of the table, alternating rounds, and ragged examples like the paper's."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from regen.config.objects import typed
from regen.config.registration import register
from regen.config.schema import CONF, TrainConfig
from regen.data.datamodule import NarrativeDataModule, NarrativeDataset
from regen.data.histories import Example
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.packed_weights import PackedLinear
from regen.training.assembly import build_model

FOLDER = Path("outputs/bench")
TOKENS_PER_INTERACTION = 114  # of the user that the authors released: title, category, price, rating, review
WORDS = " the of and to in is that for it was on are as with his they at be this from I have or by one had not but what"


@dataclass(frozen=True)
class Line:
    """One line of the table: rates of each round.

    Attributes:
        what: What was measured.
        unit: Of the rates.
        ours: Rate of each round.
        usual: Rate of the usual loop in the same rounds, where there is such a loop.
        limit: What the machine allows, measured in the same rounds, where there is such a limit.
        note: What a reader has to know.
    """

    what: str
    unit: str
    ours: list[float]
    usual: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    note: str = ""

    def row(self) -> str:
        """The line in Markdown."""
        ratios = [ours / usual for ours, usual in zip(self.ours, self.usual, strict=False)]
        shares = [ours / limit for ours, limit in zip(self.ours, self.limit, strict=False)]
        usual, limit = "- | - | -", "- | -"
        if ratios:
            spread = f"{min(ratios):.2f} to {max(ratios):.2f} ({len(ratios)})"
            usual = f"{statistics.median(self.usual):.1f} | {statistics.median(ratios):.2f} | {spread}"
        if shares:
            limit = f"{statistics.median(self.limit):.1f} | {statistics.median(shares):.2f}"
        return f"| {self.what} | {self.unit} | {_number(statistics.median(self.ours))} | {usual} | {limit} |"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


HEAD = "| what | unit | ours | usual loop | ratio | spread (rounds) | limit | share of it |\n" + "|---" * 8 + "|"


def report(lines: list[Line]) -> None:
    """Prints lines as a table, and their notes."""
    print(HEAD)
    for line in lines:
        print(line.row())
    print("\n".join(f"\n{line.what}: {line.note}" for line in lines if line.note))


def save(name: str, lines: list[Line]) -> None:
    """Keeps lines for `benchmarks/table.py`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps([asdict(line) for line in lines], indent=2))


def alternating(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Rates of each side, one round after the other, so that a noisy machine is noisy to all."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            rates[name].append(side())
            print(f"round {number + 1}/{rounds} {name}: {rates[name][-1]:.2f}", flush=True)
    return rates


def config(*overrides: str) -> TrainConfig:
    """The config of `train.py`."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("train", list(overrides)))


@dataclass(frozen=True)
class Ragged:
    """A model and examples of the paper's lengths.

    Histories hold 5 to 50 interactions, 8 on average; narratives 10 to 200 tokens, evenly by their logarithm.
    """

    cfg: TrainConfig
    lm: LanguageModel
    dataset: NarrativeDataset

    def datamodule(self) -> NarrativeDataModule:
        splits = dict.fromkeys(("train", "validation", "test"), self.dataset)
        return NarrativeDataModule(splits, batch_size=self.cfg.training.batch_size, eval_batch_size=64)

    def model(self) -> SoftTokenLM:
        return build_model(self.cfg, self.datamodule(), self.lm, start=False)


class _Vectors:
    dim = 512

    def __call__(self, example: Example, *, draw: int) -> np.ndarray:
        rng = np.random.default_rng(int(example.user_id))
        return rng.standard_normal((len(example.rows), self.dim), dtype=np.float32)


def ragged(
    examples: int, *overrides: str, history: int | None = None, narrative: int | None = None, seed: int = 0
) -> Ragged:
    """Examples of the paper's lengths for the given cell of a grid.

    Args:
        examples: How many.
        overrides: Of the composed config.
        history: Interactions of every example, instead of ragged ones.
        narrative: Tokens of every narrative, likewise.
        seed: Of the lengths.
    """
    cfg = config(*overrides)
    lm = cfg.lm.build()
    rng = np.random.default_rng(seed)
    histories = np.minimum(50, 4 + rng.geometric(1 / 4, examples))
    narratives = np.exp(rng.uniform(np.log(10), np.log(200), examples)).astype(int)
    histories = histories if history is None else np.full(examples, history)
    narratives = narratives if narrative is None else np.full(examples, narrative)
    vocabulary = np.array(WORDS.split())

    def text(tokens: int, seed: int) -> str:
        return " ".join(np.random.default_rng(seed).choice(vocabulary, tokens))

    rows = [
        Example(str(user), "purchase_reason", None, text(tokens, user), np.arange(size), np.zeros(size, dtype=bool))
        for user, (size, tokens) in enumerate(zip(histories, narratives, strict=True))
    ]

    def words(example: Example) -> list[str]:
        return [text(TOKENS_PER_INTERACTION - 2, int(row)) + ".\n" for row in example.rows]

    as_words = cfg.encoder.name == "text"
    dataset = NarrativeDataset(
        rows,
        _Vectors(),
        tokenizer=lm.tokenizer,
        prompts={name: feature.prompt for name, feature in cfg.feature.items()},
        window=lm.window,
        words=words if as_words else None,
        max_words=cfg.encoder.max_tokens if as_words else 0,
    )
    return Ragged(cfg, lm, dataset)


class MatrixRate:
    """Rate of the matrix products in one training step or decoding step, on the LM's own shapes.

    Args:
        lm: Whose linear layers.
        backward: Whether the gradient of each layer's input is taken as well.
    """

    def __init__(self, lm: LanguageModel, *, backward: bool) -> None:
        layer = lm.model.get_decoder().layers[0]
        self.layers = [module.weight.detach() for module in layer.modules() if isinstance(module, nn.Linear)]
        self.depth = len(lm.model.get_decoder().layers)
        self.head = lm.model.get_output_embeddings().weight.detach()
        self.backward = backward

    def flops(self, positions: int, targets: int) -> float:
        """Of the products for that many positions, of which so many pass the head."""
        passes = 4 if self.backward else 2
        layers = self.depth * sum(weight.numel() for weight in self.layers)
        return float(passes * (positions * layers + targets * self.head.numel()))

    def measure(self, positions: int, seconds: float = 1.0) -> float:
        """Flops per second of one layer's products at that many rows, plain or packed, whichever is more."""
        inputs = {width: torch.randn(positions, width) for weight in self.layers for width in weight.shape}
        packed = [(_packed(weight), _packed(weight.t())) for weight in self.layers]

        def plain() -> None:
            for weight in self.layers:
                nn.functional.linear(inputs[weight.shape[1]], weight)
                if self.backward:
                    torch.matmul(inputs[weight.shape[0]], weight)

        def ready() -> None:
            for weight, (forward, backward) in zip(self.layers, packed, strict=True):
                forward(inputs[weight.shape[1]])
                if self.backward:
                    backward(inputs[weight.shape[0]])

        once = self.flops(positions, 0) / self.depth
        return once / min(_seconds(plain, seconds), _seconds(ready, seconds))


def _packed(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    vars(layer)["forward"] = PackedLinear(layer, backward=False)
    return layer


def _seconds(products: Callable[[], None], at_least: float) -> float:
    times, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < at_least:
        products()
        times += 1
    return taken / times


def arguments(argv: list[str], **defaults: Any) -> dict[str, Any]:
    """`name=value` arguments of a benchmark.

    Raises:
        SystemExit: If one is unknown.
    """
    given = dict(argument.split("=", 1) for argument in argv)
    if unknown := given.keys() - defaults.keys():
        raise SystemExit(f"unknown argument {sorted(unknown)[0]!r}; known: {', '.join(defaults)}")
    return {name: type(default)(given.get(name, default)) for name, default in defaults.items()}
