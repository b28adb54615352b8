"""Checks once per LM and library version that our fast code computes what `transformers` computes.

The reference is the forward pass of `transformers`, one row at a time, without padding. The check uses the first layers
of the LM in float32. Sliding windows are shortened, so that a few tokens exceed them.
"""

import copy
import functools
import hashlib
import json
import logging
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor, nn

from regen.data.batch import Batch
from regen.data.download import user_cache
from regen.generation.native_decoder import greedy_decoder
from regen.generation.row_decoder import RowDecoder
from regen.models import attention
from regen.models.fast_path import FastPath
from regen.models.head_loss import lm_head
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.storage.artefacts import write_atomically

logger = logging.getLogger(__name__)
LAYERS = 4  # minimum number of layers; more if needed to include each kind of layer
WINDOW = 5  # length of sliding windows during the check
LENGTHS = (3, 14, 9, 6)  # lengths of the rows
NEW = (7, 4, 6, 7)  # tokens to generate in each row
TOLERANCE = 1e-3  # largest difference of two logits, as a share of the largest logit
CHECKED_BY = (
    "models/attention",
    "models/head_loss",
    "models/soft_token_lm",
    "generation/lm_check",
    "generation/native_decoder",
    "generation/row_decoder",
)


class UnfitLanguageModelError(ValueError):
    """The LM cannot be trained with soft tokens, even with the code of `transformers` alone."""


@functools.lru_cache(maxsize=8)
def fast_path_of(lm: LanguageModel) -> FastPath:
    """`checked_fast_path` of a loaded LM, cached per process.

    Raises:
        UnfitLanguageModelError: If the LM cannot be used at all.
    """
    return checked_fast_path(lm.model, name=lm.name)


def checked_fast_path(model: Any, *, name: str) -> FastPath:
    """The parts of our code that are right for an LM, cached in the user cache.

    Args:
        model: A Hugging Face causal LM; it is not changed.
        name: Name of the LM for messages.

    Raises:
        UnfitLanguageModelError: If the LM cannot be used at all.
    """
    file = user_cache() / "lm" / "checks" / f"{_fingerprint(model)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            try:
                found: dict[str, Any] = asdict(fast_path(model))
            except UnfitLanguageModelError as error:
                found = {"unfit": str(error)}
            write_atomically(file, lambda path: path.write_text(json.dumps(found)))
    found = json.loads(file.read_text())
    if "unfit" in found:
        raise UnfitLanguageModelError(
            f"lm={name} ({type(model).__name__}) cannot be trained: {found['unfit']}. Use another LM."
        )
    path = FastPath(**found)
    if path.reason:
        logger.info("lm=%s: %s", name, path.reason)
    return path


def fast_path(model: Any) -> FastPath:
    """The uncached check of `checked_fast_path`.

    Raises:
        UnfitLanguageModelError: If the LM cannot be used at all.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            check = _Check(_first_layers(model))
        except UnfitLanguageModelError:
            check = _Check(copy.deepcopy(model).float().eval())  # some LMs do not run with fewer layers
        return check.fast_path()


class _Check:
    """Reference results of one LM, and comparisons with them."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        try:
            vocabulary = int(lm.get_input_embeddings().weight.shape[0])
            self.ids = [torch.randint(vocabulary, (length,)) for length in LENGTHS]
            self.expected = [self._alone(row) for row in self.ids]
            self._check_padding()
        except UnfitLanguageModelError:
            raise
        except Exception as error:
            reason = f"it does not run on embeddings in place of tokens ({_brief(error)})"
            raise UnfitLanguageModelError(reason) from error
        self._check_causality()

    def fast_path(self) -> FastPath:
        """The full fast path without the parts whose results differ."""
        path, reasons = FastPath(), []
        if reason := _failure(self._check_attention):
            path = replace(path, attention=False)
            reasons.append(f"transformers' own attention is used ({reason})")
        if reason := _failure(self._check_head, path):
            path = replace(path, head=False)
            reasons.append(f"transformers' own head is used ({reason})")
        rows = path.attention and path.head
        if reason := _failure(self._check_decoding, path) if rows else "its attention or head is not ours":
            path = replace(path, rows=False)
            reasons.append(f"generate writes the texts ({reason})")
        if reason := _failure(self._check_decoding, replace(path, rows=False)):
            path = replace(path, padding=False)
            if alone := _failure(self._check_decoding, replace(path, rows=False)):
                raise UnfitLanguageModelError(f"generate does not continue embeddings ({alone})")
            reasons.append(f"generate is given one row at a time where it is used ({reason})")
        return replace(path, reason="; ".join(reasons))

    def _alone(self, ids: Tensor) -> Float[Tensor, "length vocabulary"]:
        embeds = self.lm.get_input_embeddings()(ids)[None]
        logits: Tensor = self.lm(inputs_embeds=embeds, use_cache=False).logits[0]
        return logits

    def _batch(self) -> Batch:
        """The rows as prompts, padded like a real batch."""
        padded = nn.utils.rnn.pad_sequence(self.ids, batch_first=True, padding_side="left")
        ones = [torch.ones(len(row), dtype=torch.bool) for row in self.ids]
        mask = nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side="left")
        count = len(padded)
        nothing = torch.zeros(count, 0)
        return Batch(
            torch.arange(count), nothing[..., None], nothing.bool(), padded, mask, nothing.long(), nothing.bool()
        )

    def _read(self, path: FastPath, *, own_head: bool) -> list[Tensor]:
        model = SoftTokenLM(self.lm, None, fast_path=path)
        padded = nn.utils.rnn.pad_sequence(self.ids, batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor(LENGTHS)[:, None]
        embeds = self.lm.get_input_embeddings()(padded)
        logits = lm_head(self.lm)(model.hidden(embeds, mask)) if own_head else model.logits(embeds, mask)
        return [row[:length] for row, length in zip(logits, LENGTHS, strict=True)]

    def _check_padding(self) -> None:
        native = self._read(FastPath(attention=False, head=False, rows=False), own_head=False)
        if different := _difference(native, self.expected):
            raise UnfitLanguageModelError(f"padding after a row changes what the LM reads in it ({different})")

    def _check_causality(self) -> None:
        changed = self.ids[1].clone()
        changed[-1] = (changed[-1] + 1) % int(self.lm.get_input_embeddings().weight.shape[0])
        if different := _difference([self._alone(changed)[:-1]], [self.expected[1][:-1]]):
            raise UnfitLanguageModelError(f"it is not causal: a later token changes earlier logits ({different})")

    def _check_attention(self) -> None:
        with attention.counted() as calls:
            ours = self._read(FastPath(), own_head=False)
        layers = int(self.lm.config.get_text_config().num_hidden_layers)
        if calls() < layers:
            raise _DifferentError(f"{calls()} of {layers} layers attend by it")
        _same(ours, self.expected)

    def _check_head(self, path: FastPath) -> None:
        _same(self._read(path, own_head=True), self.expected)

    def _check_decoding(self, path: FastPath) -> None:
        model = SoftTokenLM(self.lm, None, fast_path=path)
        decoder = greedy_decoder(model, slots=len(LENGTHS), length=max(LENGTHS) + max(NEW), stop_ids=())
        rows = range(len(LENGTHS))
        scores: dict[int, list[Tensor]] = {row: [] for row in rows}
        if isinstance(decoder, RowDecoder):
            head = decoder.head

            def recorded(hidden: Tensor) -> Tensor:
                logits = head(hidden)
                for key, row in zip(decoder.keys[-len(logits) :], logits, strict=True):
                    scores[key].append(row)
                return logits

            decoder.head = recorded
        tokens = decoder.add(self._batch(), rows, NEW)
        while decoder.keys:
            tokens += decoder.step()
        for row in rows:
            ids = torch.tensor([token.id for token in tokens if token.key == row])
            expected = self._alone(torch.cat([self.ids[row], ids]))[LENGTHS[row] - 1 : -1]
            if scores[row]:
                _same([torch.stack(scores[row])], [expected])
            # Each written token has the largest logit; of equally large ones either may be written.
            _same([expected[torch.arange(len(ids)), ids]], [expected.amax(dim=-1)])


class _DifferentError(Exception):
    """Two computations differ that should agree."""


def _same(ours: list[Tensor], expected: list[Tensor]) -> None:
    if different := _difference(ours, expected):
        raise _DifferentError(different)


def _difference(ours: list[Tensor], expected: list[Tensor]) -> str:
    largest = max(float(row.abs().max()) for row in expected)
    worst = max(float((one - other).abs().max()) for one, other in zip(ours, expected, strict=True))
    return "" if worst <= TOLERANCE * largest else f"logits of up to {largest:.2g} differ by {worst:.2g}"


def _failure(check: Any, *args: Any) -> str:
    """Why a check fails; empty if it passes."""
    try:
        check(*args)
    except Exception as error:  # unknown architectures may raise anything in our code; then theirs is used
        return _brief(error)
    return ""


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if isinstance(error, _DifferentError | NotImplementedError) and text else f"{error!r:.200}"


def _first_layers(model: Any) -> Any:
    """A float32 copy of the LM with few layers, at least one of each kind, and short sliding windows."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    small = copy.deepcopy(model, memo=shared)
    config = small.config.get_text_config()
    count = int(config.num_hidden_layers)
    for module in list(small.modules()):
        for name, layers in list(module.named_children()):
            if isinstance(layers, nn.ModuleList) and len(layers) == count:
                kept = _kept(layers, getattr(config, "layer_types", None) or [""] * count)
                setattr(module, name, layers[:kept])
                config.num_hidden_layers = kept
                if "layer_types" in vars(config):  # otherwise it is derived from the number of layers
                    config.layer_types = (config.layer_types or [])[:kept] or None
    small = copy.deepcopy(small).float().eval()  # from here on, no tensor is shared with the LM
    for part in [small.config.get_text_config(), *small.modules()]:
        for name in ("sliding_window", "attention_chunk_size"):
            if getattr(part, name, None) is not None:
                setattr(part, name, WINDOW)
    return small


def _kept(layers: nn.ModuleList, types: list[str]) -> int:
    kinds = [f"{kind}{layer}" for kind, layer in zip(types, layers, strict=True)]
    return max(min(LAYERS, len(kinds)), 1 + max(kinds.index(kind) for kind in set(kinds)))


def _fingerprint(model: Any) -> str:
    sources = [(Path(__file__).parents[1] / f"{name}.py").read_text() for name in CHECKED_BY]
    versions = [metadata.version(name) for name in ("torch", "transformers")]
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("dtype", "_name_or_path")}
    recipe = json.dumps([type(model).__name__, config, versions, sources], sort_keys=True, default=str)
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]
