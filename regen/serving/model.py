"""A trained model as its user sees it: load, narrate, save, share (paper 4.2, from a finished run on)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast, overload

import torch
from transformers import GenerationConfig

from regen.data.batch import Batch
from regen.data.tables import nearest
from regen.generation.decoding import Decoding
from regen.generation.prepared import Prepared
from regen.models.adapter import Adapter
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.history_encoder import HistoryEncoder
from regen.serving.interactions import MOST, History, Interaction, RequestError, is_sequence, read_history, shown
from regen.serving.items import Items
from regen.serving.narrative import Narrative
from regen.serving.spec import Spec


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
        self._decoding = Decoding(soft_token_lm, lm.tokenizer, generation, lm.window)
        self._encode = HistoryEncoder(spec.encoder, spec.dim, items, spec.sentence_encoder, spec.seed)
        prompts = {name: str(options["prompt"]) for name, options in spec.features.items()}
        self._prompts = {
            name: torch.tensor(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.long)
            for name, prompt in prompts.items()
        }

    def to(self, device: torch.device | str) -> Self:
        """Moves the model; returns itself, as a module of PyTorch does."""
        self.soft_token_lm.to(device)
        return self

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
        return self._decoding.stop_ids

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a narrative."""
        return self._decoding.max_new_tokens

    @property
    def beyond_greedy(self) -> list[str]:
        """Names of the generation settings that differ from plain greedy decoding."""
        return self._decoding.beyond_greedy

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
        number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        if temperature is not None and not (number and 0 < temperature < MOST):
            raise RequestError(
                f"temperature={shown(temperature)}: it has to be a number above 0 and below {MOST:.0e}. Leave it out "
                "for greedy text."
            )
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise RequestError(f"seed={shown(seed)}: it has to be an integer of at least 0.")
        several = is_sequence(history) and len(history) > 0 and is_sequence(history[0])
        if several:
            prepared = self.prepare_all(cast("Sequence[History]", history), feature=feature)
        else:
            prepared = [self.prepare(cast("History", history), feature=feature)]
        texts = self._decoding.texts(prepared, temperature=temperature, seed=seed)
        narratives = [
            Narrative(text, one.confidence, one.unknown_items) for text, one in zip(texts, prepared, strict=True)
        ]
        return narratives if several else narratives[0]

    def stream(self, history: History, feature: str = "purchase_reason") -> Iterator[str]:
        """The text of `narrate` in pieces, as they are written; in one piece where its settings are not greedy.

        Raises:
            RequestError: As `narrate`, before the first piece.
        """
        return self._decoding.stream(self.prepare(history, feature=feature))

    def prepare(self, history: History, *, feature: str = "purchase_reason") -> Prepared:
        """A history, checked and encoded: what the model reads for it.

        Raises:
            RequestError: If the model has no such feature, or the history cannot be read.
        """
        read = read_history(history, self.items, latest=self.spec.max_history)
        return self._prepare([read], feature)[0]

    def prepare_all(self, histories: Sequence[History], *, feature: str = "purchase_reason") -> list[Prepared]:
        """Several histories, encoded together, which is faster than one by one.

        Raises:
            RequestError: As `prepare`; the message begins with the history's position.
        """
        read = []
        for at, history in enumerate(histories):
            try:
                read.append(read_history(history, self.items, latest=self.spec.max_history))
            except RequestError as error:
                raise RequestError(f"histories[{at}]: {error}") from error
        return self._prepare(read, feature)

    def collate(self, prepared: Sequence[Prepared]) -> Batch:
        """Histories as the batch that `RowDecoder.add` and `SoftTokenLM.generate` take, on the model's device."""
        return self._decoding.collate(prepared)

    def limit(self, prepared: Prepared) -> int:
        """The most tokens of this narrative, at least one."""
        return self._decoding.limit(prepared)

    def cf_shares(self, history: History, *, feature: str = "purchase_reason") -> list[float] | None:
        """CF's share of the soft token of each interaction read, 0 to 1; None unless the encoder is `both`.

        By gradient times input (`regen.analysis.adapter_weights.attribution_share`), for any adapter.

        Raises:
            RequestError: As `prepare`.
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

    def _prepare(self, histories: Sequence[list[Interaction]], feature: str) -> list[Prepared]:
        if not isinstance(feature, str) or feature not in self.spec.features:
            hint = nearest(feature[:80] if isinstance(feature, str) else "", self.features)
            raise RequestError(f"feature={shown(feature)}: this model does not write it. {hint}")
        prompt = self._prompts[feature]
        before = len(prompt) + (self.soft_token_lm.bos_token_id is not None)
        window = self._decoding.window
        if (longest := before + max(map(len, histories))) >= window:
            raise RequestError(
                f"history and prompt take {longest} positions; the LM reads {window}. Give fewer purchases."
            )
        withhold = bool(self.spec.features[feature]["withhold_final_review"])
        return [
            Prepared(
                feature=feature,
                fused=torch.from_numpy(encoded.fused),
                prompt=prompt,
                prefix=before + len(history),
                confidence=float(encoded.known.mean()),
                unknown_items=_unknown(history, encoded.known.tolist()),
            )
            for history, encoded in zip(histories, self._encode(histories, withhold_final_review=withhold), strict=True)
        ]


def _unknown(history: list[Interaction], known: list[bool]) -> tuple[str, ...]:
    named = (str(one.item_id or one.title) for one, is_known in zip(history, known, strict=True) if not is_known)
    return tuple(dict.fromkeys(named))
