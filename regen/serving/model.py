"""A trained model as its user sees it: load, narrate, save, share (paper 4.2, from a finished run on)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import torch
from transformers import GenerationConfig

from regen.costs import Stopwatch
from regen.data.batch import Batch
from regen.data.tables import nearest
from regen.evaluation.generate import decode_rows, generation_config
from regen.models.adapter import Adapter
from regen.models.language_model import LanguageModel
from regen.models.row_decoder import RowDecoder
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.history_encoder import HistoryEncoder, complete
from regen.serving.interactions import Interaction, RequestError, checked_history, is_sequence
from regen.serving.items import Items
from regen.serving.narrative import Narrative, Prepared, collate
from regen.serving.spec import Spec
from regen.serving.text_pieces import TextPieces, decoded

ROWS = 64  # histories decoded at one time
History = Sequence[Interaction | Mapping[str, Any]]


class NarrativeModel:
    """Narrates purchase histories as people write them.

        model = NarrativeModel.from_pretrained(FOLDER)
        print(model.narrate([{"title": "Ballpoint pens, black", "rating": 5, "review": "Write smoothly."}]))

    A history is a list of `Interaction`s, or of mappings with their names, oldest first; as in training the latest 50
    are read, and the final review is not read for a feature that withholds it. An item whose `item_id` the model knows
    brings its CF factor and the metadata that are left out; any other goes through its texts, and its CF factor is
    zero, as for an item that no training user bought.

    Attributes:
        spec: What `config.json` of its folder holds.
        soft_token_lm: Adapter and LM, in evaluation mode.
        items: The items of the training data.
        generation: How narratives are decoded.
        card: The model card, Markdown.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        soft_token_lm: SoftTokenLM,
        lm: LanguageModel,
        items: Items,
        generation: GenerationConfig,
        card: str,
    ) -> None:
        self.spec = spec
        self.soft_token_lm = soft_token_lm
        self.items = items
        self.generation = generation
        self.card = card
        self._lm = lm
        self._encode = HistoryEncoder(spec.encoder, spec.dim, items, spec.sentence_encoder, spec.seed)
        prompts = {name: str(options["prompt"]) for name, options in spec.features.items()}
        self._prompts = {
            name: torch.tensor(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.long)
            for name, prompt in prompts.items()
        }

    @classmethod
    def from_run(cls, folder: Path | str) -> Self:
        """A finished training run.

        Args:
            folder: The run's, `outputs/runs/<…>`.

        Raises:
            FileNotFoundError: If it holds no run.
            ValueError: If the run is not finished, or its encoder reads no history of one's own.
        """
        from regen.serving.finished_run import parts_of_run

        return cls(**parts_of_run(Path(folder)))

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        revision: str | None = None,
        lm: LanguageModel | str | None = None,
        adapters: Mapping[str, Callable[..., Adapter]] | None = None,
    ) -> Self:
        """An exported model.

        Args:
            folder: That `save_pretrained` wrote, or the id of a model on the Hugging Face hub.
            revision: Of a model on the hub.
            lm: The base LM, loaded or as a folder or hub id; without it the one that the folder names.
            adapters: Adapter classes of your own, by the name that the folder's configuration gives them.

        Raises:
            FileNotFoundError: If there is no such folder or model, or a file of it is missing.
            ValueError: If a file is damaged, or the LM is not the one that the adapter was trained in front of.
        """
        from regen.serving.exported import read_parts

        return cls(**read_parts(folder, revision=revision, lm=lm, adapters=adapters or {}))

    def save_pretrained(self, folder: Path | str) -> Path:
        """Writes all but the base LM into a folder, which appears whole; an older export there is replaced.

        Raises:
            ValueError: If the folder holds something else.
        """
        from regen.serving.exported import write_folder

        return write_folder(self, Path(folder))

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Uploads what `save_pretrained` writes; the token comes from `HF_TOKEN` or the hub's own login.

        Returns:
            The address of the model.

        Raises:
            ValueError: If the hub refuses.
        """
        from regen.serving.exported import push

        return push(self, repo_id, private=private)

    @property
    def encoder(self) -> str:
        """What lets a history into the model: `cf`, `content`, `both`, or a control."""
        return self.spec.encoder

    @property
    def features(self) -> tuple[str, ...]:
        """What it can write."""
        return tuple(self.spec.features)

    @property
    def data_fingerprint(self) -> str:
        """Of the prepared data it was trained on, to which its item ids belong."""
        return str(self.spec.data["fingerprint"])

    @property
    def tokenizer(self) -> Any:
        """The LM's."""
        return self._lm.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a narrative."""
        return frozenset([int(self.tokenizer.eos_token_id)])

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a narrative."""
        return int(self.generation.max_new_tokens)

    @property
    def greedy(self) -> bool:
        """Whether its generation settings take the likeliest token each time and say nothing else."""
        simple = generation_config({"do_sample": False, "max_new_tokens": self.max_new_tokens}, self.tokenizer)
        return _settings(simple) == _settings(self.generation)

    @overload
    def narrate(
        self, history: History, feature: str = ..., *, temperature: float | None = ..., seed: int = ...
    ) -> Narrative: ...

    @overload
    def narrate(
        self, history: Sequence[History], feature: str = ..., *, temperature: float | None = ..., seed: int = ...
    ) -> list[Narrative]: ...

    def narrate(
        self,
        history: History | Sequence[History],
        feature: str = "purchase_reason",
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Narrative | list[Narrative]:
        """Writes one narrative for a history, or one for each of several.

        Args:
            history: One history, or a list of them.
            feature: What to write.
            temperature: Of sampling; without it as the model's generation settings say, which is greedy by default.
            seed: Of sampling: the same histories with the same seed give the same texts.

        Raises:
            RequestError: If the model has no such feature, or a history cannot be read.
        """
        several = is_sequence(history) and len(history) > 0 and is_sequence(history[0])
        prepared = self.prepare_all(history if several else [history], feature=feature)  # type: ignore[list-item, arg-type]
        if temperature is None and self.greedy:
            texts = self._greedy(prepared)
        else:
            texts = self._sampled(prepared, temperature, seed)
        narratives = [
            Narrative(text, one.confidence, one.unknown_items) for text, one in zip(texts, prepared, strict=True)
        ]
        return narratives if several else narratives[0]

    def stream(self, history: History, feature: str = "purchase_reason") -> Iterator[str]:
        """The text of `narrate` in pieces, as they are written; in one piece where its settings are not greedy.

        Raises:
            RequestError: As `narrate`, at the first piece.
        """
        if not self.greedy:
            yield self.narrate(history, feature).text
            return
        prepared = self.prepare(history, feature=feature)
        limit = min(self.max_new_tokens, self.window_left(prepared))
        decoder = RowDecoder(self.soft_token_lm, slots=1, length=prepared.prefix + limit, stop_ids=self.stop_ids)
        pieces = TextPieces(self.tokenizer)
        tokens = decoder.add(self.collate([prepared]), [0], [limit])
        while tokens:
            if piece := pieces.add(tokens[0].id):
                yield piece
            tokens = decoder.step()
        if rest := pieces.end():
            yield rest

    def prepare(self, history: History, *, feature: str = "purchase_reason") -> Prepared:
        """A history, checked and encoded: what the model reads for it.

        Raises:
            RequestError: If the model has no such feature, or the history cannot be read.
        """
        return self._prepare([checked_history(history, latest=self.spec.max_history)], [history], feature)[0]

    def prepare_all(self, histories: Sequence[History], *, feature: str = "purchase_reason") -> list[Prepared]:
        """Several histories, encoded together, which is faster than one by one.

        Raises:
            RequestError: As `prepare`.
        """
        checked = [checked_history(history, latest=self.spec.max_history) for history in histories]
        return self._prepare(checked, histories, feature)

    def collate(self, prepared: Sequence[Prepared]) -> Batch:
        """Histories as the batch that `RowDecoder.add` and `SoftTokenLM.generate` take, on the model's device."""
        return collate(list(prepared), pad=int(self.tokenizer.pad_token_id)).on(self.soft_token_lm.device)

    def window_left(self, prepared: Prepared) -> int:
        """Positions that the LM has left for the narrative."""
        return self._lm.window - prepared.prefix

    def cf_shares(self, history: History, *, feature: str = "purchase_reason") -> list[float] | None:
        """CF's share of the soft token of each interaction read, 0 to 1; None unless the encoder is `both`.

        By gradient times input (`regen.analysis.adapter_weights.attribution_share`), for any adapter.
        """
        if self.encoder != "both":
            return None
        from regen.analysis.adapter_weights import attribution_share

        assert self.soft_token_lm.adapter is not None
        batch = self.collate([self.prepare(history, feature=feature)])
        positions = torch.arange(batch.fused.shape[1], device=batch.fused.device)
        share = attribution_share(
            self.soft_token_lm.adapter,
            batch.fused,
            batch.history_mask,
            rows=torch.zeros_like(positions),
            positions=positions,
            cf_dim=self.spec.cf_dim,
        )
        return [float(one) for one in share.nan_to_num()]

    def _prepare(self, checked: Sequence[list[Interaction]], given: Sequence[History], feature: str) -> list[Prepared]:
        if not isinstance(feature, str) or feature not in self.spec.features:
            hint = nearest(str(feature)[:80], self.features)
            raise RequestError(f"feature={feature!r:.80}: this model does not write it. {hint}")
        completed = [
            complete(history, self.items, first=len(whole) - len(history))
            for history, whole in zip(checked, given, strict=True)
        ]
        withhold = bool(self.spec.features[feature]["withhold_final_review"])
        prompt = self._prompts[feature]
        before = len(prompt) + (self.soft_token_lm.bos_token_id is not None)
        return [
            Prepared(
                feature=feature,
                fused=torch.from_numpy(encoded.fused),
                prompt=prompt,
                prefix=before + len(history),
                confidence=float(encoded.known.mean()),
                unknown_items=_unknown(history, encoded.known.tolist()),
            )
            for history, encoded in zip(completed, self._encode(completed, withhold_final_review=withhold), strict=True)
        ]

    def _greedy(self, prepared: list[Prepared]) -> list[str]:
        texts = [""] * len(prepared)
        limits = [min(self.max_new_tokens, self.window_left(one)) for one in prepared]
        rows = _Rows(self, prepared)
        for at, ids in decode_rows(
            self.soft_token_lm, rows, limits=limits, stop_ids=self.stop_ids, rows=ROWS, watch=Stopwatch()
        ):
            texts[at] = decoded(self.tokenizer, ids)
        return texts

    def _sampled(self, prepared: list[Prepared], temperature: float | None, seed: int) -> list[str]:
        config = self.generation
        if temperature is not None:
            if not temperature > 0:
                raise RequestError(f"temperature={temperature}: it has to be above 0; leave it out for greedy text.")
            options = {"max_new_tokens": self.max_new_tokens, "do_sample": True, "temperature": float(temperature)}
            config = generation_config(options, self.tokenizer)
        texts: list[str] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for first in range(0, len(prepared), ROWS):
                ids = self.soft_token_lm.generate(self.collate(prepared[first : first + ROWS]), config)
                texts += [decoded(self.tokenizer, row) for row in ids.tolist()]
        return texts


@dataclass(frozen=True)
class _Rows:
    """Histories as `decode_rows` reads them."""

    model: NarrativeModel
    prepared: list[Prepared]

    @property
    def prefixes(self) -> list[int]:
        return [one.prefix for one in self.prepared]

    def collate(self, indices: Sequence[int]) -> Batch:
        return self.model.collate([self.prepared[index] for index in indices])


def _unknown(history: list[Interaction], known: list[bool]) -> tuple[str, ...]:
    named = (str(one.item_id or one.title) for one, is_known in zip(history, known, strict=True) if not is_known)
    return tuple(dict.fromkeys(named))


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
