"""The backend inside this process."""

from collections.abc import AsyncGenerator

from regen.generation.prepared import Prepared
from regen.serving.backend import NarrativeBackend
from regen.serving.decoding_thread import DecodingThread, ThreadedBackend
from regen.serving.model import NarrativeModel


class TransformersBackend(ThreadedBackend[Prepared], NarrativeBackend):
    """Decodes in a thread of this process.

    Args:
        model: The model. Nothing else may decode with it while the backend runs.
        rows: The most narratives written at one time.
        queue: The most that wait for a row; more are refused.
    """

    def __init__(self, model: NarrativeModel, *, rows: int = 32, queue: int = 128) -> None:
        super().__init__(model, places=rows + queue)
        self.thread = DecodingThread(
            model.soft_token_lm,
            model.decoding.collate,
            rows=rows,
            length=model.longest_row,
            stop_ids=model.decoding.stop_ids,
        )

    def _tokens(self, prepared: Prepared) -> AsyncGenerator[int, None]:
        return self.thread.tokens(prepared, limit=self.model.decoding.limit(prepared))
