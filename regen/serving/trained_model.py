"""What every trained model can do: load from a run or an exported folder, move, save, share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from transformers import GenerationConfig

from regen.models.adapter import Adapter
from regen.models.closed_form import ClosedForm
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.items import Items
from regen.serving.spec import Spec


class TrainedModel:
    """A trained model with all that it reads besides the base LM.

    Attributes:
        tasks: Tasks whose runs and exports this class loads.
        spec: Contents of the exported `config.json`.
        soft_token_lm: Adapter and LM, in evaluation mode.
        items: The items of the training data.
        closed_form: The closed form of a recommender; None for narratives of given histories.
        generation: Generation settings.
        card: The model card, Markdown.
    """

    tasks: ClassVar[tuple[str, ...]]
    closed_form: ClosedForm | None

    def __init__(
        self, spec: Spec, *, soft_token_lm: SoftTokenLM, items: Items, generation: GenerationConfig, card: str
    ) -> None:
        self.spec = spec
        self.soft_token_lm = soft_token_lm
        self.items = items
        self.generation = generation
        self.card = card

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the prepared data, to which the item ids belong."""
        return str(self.spec.data["fingerprint"])

    def to(self, device: torch.device | str) -> Self:
        """Moves the model to a device, in place; returns itself."""
        self.soft_token_lm.to(device)
        return self

    @classmethod
    def from_run(cls, folder: Path | str) -> Self:
        """Loads a finished training run.

        Args:
            folder: Folder of the run, `outputs/runs/<…>`.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If the run is not finished or has another task, or its encoder cannot encode new histories.
        """
        from regen.serving.finished_run import parts_of_run

        return cls(**parts_of_run(Path(folder), tasks=cls.tasks))

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        revision: str | None = None,
        lm: LanguageModel | str | None = None,
        adapters: Mapping[str, Callable[..., Adapter]] | None = None,
    ) -> Self:
        """Loads an exported model.

        Args:
            folder: Folder that `save_pretrained` wrote, or a model id on the Hugging Face hub.
            revision: Revision on the hub.
            lm: The base LM, loaded or as a folder or hub id. By default the one that the configuration names.
            adapters: Your own adapter classes, by their name in the configuration.

        Raises:
            FileNotFoundError: If there is no such folder or model, or a file is missing.
            ValueError: If a file is damaged, the model has another task, or the LM is not the one that the adapter was
                trained with.
        """
        from regen.serving.exported import read_parts

        return cls(**read_parts(folder, tasks=cls.tasks, revision=revision, lm=lm, adapters=adapters or {}))

    def save_pretrained(self, folder: Path | str) -> Path:
        """Writes everything except the base LM into a folder. Replaces an older export, in one step.

        Raises:
            ValueError: If the folder holds something else.
        """
        from regen.serving.exported import write_folder

        return write_folder(self, Path(folder))

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Uploads what `save_pretrained` writes. The token comes from `HF_TOKEN` or the hub's own login.

        Returns:
            Address of the model.

        Raises:
            ValueError: If the hub refuses.
        """
        from regen.serving.exported import push

        return push(self, repo_id, private=private)
