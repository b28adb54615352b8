"""The public class for models that write narratives of given histories (paper 4.2)."""

from collections.abc import Iterator, Sequence
from typing import Any, cast, overload

import torch
from transformers import GenerationConfig

from regen.data.tables import nearest
from regen.generation.decoding import Decoding
from regen.generation.prepared import Prepared
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.history_encoder import HistoryEncoder
from regen.serving.interactions import MOST, History, Interaction, RequestError, is_sequence, read_history, shown
from regen.serving.items import Items
from regen.serving.narrative import Narrative
from regen.serving.spec import Spec
from regen.serving.trained_model import TrainedModel


class NarrativeModel(TrainedModel):
    """Writes narratives about purchase histories.

        model = NarrativeModel.from_pretrained(FOLDER)
        print(model.narrate([{"title": "Ballpoint pens, black", "rating": 5, "review": "Write smoothly."}]))

    A history is a list of `Interaction`s, or of mappings with the same keys, oldest first. As in training, the model
    reads the latest 50, and ignores the final review if the feature withholds it. A known `item_id` adds the item's CF
    factor and missing metadata. Other items are encoded from their texts, with a zero CF factor.

    Attributes:
        spec: Contents of the exported `config.json`.
        soft_token_lm: Adapter and LM, in evaluation mode.
        items: The items of the training data.
        generation: Generation settings.
        decoding: Turns encoded histories into text.
        card: The model card, Markdown.
    """

    tasks = ("narrate",)
    closed_form = None

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
        super().__init__(spec, soft_token_lm=soft_token_lm, items=items, generation=generation, card=card)
        self.decoding = Decoding(soft_token_lm, lm.tokenizer, generation, lm.window)
        self._encode = HistoryEncoder(spec.encoder, spec.dim, items, spec.sentence_encoder, spec.seed)
        prompts = {name: str(options["prompt"]) for name, options in spec.features.items()}
        self._prompts = {
            name: torch.tensor(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.long)
            for name, prompt in prompts.items()
        }

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the model writes."""
        return tuple(self.spec.features)

    @property
    def longest_row(self) -> int:
        """Positions of the longest history, prompt and narrative together."""
        begin = self.soft_token_lm.bos_token_id is not None
        prompt = max(map(len, self._prompts.values()))
        return begin + self.spec.max_history + prompt + self.decoding.max_new_tokens

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
        """Writes one narrative for each history.

        Args:
            history: One history, or a list of them.
            feature: Name of the feature to write.
            temperature: Sampling temperature. By default the model's generation settings decide; usually greedy.
            seed: Seed of sampling. The same histories and seed give the same texts.

        Raises:
            RequestError: If the model has no such feature, or a history cannot be read.
        """
        _check_sampling(temperature, seed)
        several = is_sequence(history) and len(history) > 0 and is_sequence(history[0])
        if several:
            prepared = self.prepare_all(cast("Sequence[History]", history), feature=feature)
        else:
            prepared = [self.prepare(cast("History", history), feature=feature)]
        texts = self.decoding.texts(prepared, temperature=temperature, seed=seed)
        narratives = [
            Narrative(text, one.confidence, one.unknown_items) for text, one in zip(texts, prepared, strict=True)
        ]
        return narratives if several else narratives[0]

    def stream(self, history: History, feature: str = "purchase_reason") -> Iterator[str]:
        """Writes one narrative piece by piece, or in one piece if the generation settings are not greedy.

        Raises:
            RequestError: As for `narrate`, before the first piece.
        """
        return self.decoding.stream(self.prepare(history, feature=feature))

    def prepare(self, history: History, *, feature: str = "purchase_reason") -> Prepared:
        """Checks and encodes one history.

        Raises:
            RequestError: If the model has no such feature, or the history cannot be read.
        """
        read = read_history(history, self.items, latest=self.spec.max_history)
        return self._prepare([read], feature)[0]

    def prepare_all(self, histories: Sequence[History], *, feature: str = "purchase_reason") -> list[Prepared]:
        """Encodes several histories together, which is faster than one by one.

        Raises:
            RequestError: As for `prepare`; the message begins with the position of the history.
        """
        read = []
        for at, history in enumerate(histories):
            try:
                read.append(read_history(history, self.items, latest=self.spec.max_history))
            except RequestError as error:
                raise RequestError(f"histories[{at}]: {error}") from error
        return self._prepare(read, feature)

    def cf_shares(self, history: History, *, feature: str = "purchase_reason") -> list[float] | None:
        """CF's share of each soft token, 0 to 1, by gradient times input; None unless the encoder is `both`.

        Raises:
            RequestError: As for `prepare`.
        """
        if self.spec.encoder != "both":
            return None
        from regen.analysis.adapter_weights import attribution_share

        assert self.soft_token_lm.adapter is not None
        batch = self.decoding.collate([self.prepare(history, feature=feature)])
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
        window = self.decoding.window
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


def _check_sampling(temperature: Any, seed: Any) -> None:
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if temperature is not None and not (number and 0 < temperature < MOST):
        raise RequestError(
            f"temperature={shown(temperature)}: it has to be a number above 0 and below {MOST:.0e}. Leave it out "
            "for greedy text."
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise RequestError(f"seed={shown(seed)}: it has to be an integer of at least 0.")


def _unknown(history: list[Interaction], known: list[bool]) -> tuple[str, ...]:
    named = (str(one.item_id or one.title) for one, is_known in zip(history, known, strict=True) if not is_known)
    return tuple(dict.fromkeys(named))
