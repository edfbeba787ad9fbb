"""Several devices: one replica of the model on each. Each batch goes to a free replica."""

from collections.abc import Sequence
from queue import SimpleQueue

from spanqa.backends.base import Backend
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits


class Replicas:
    """A backend with the same model on several devices. Call it from `batches_at_once` threads to keep all devices busy."""

    def __init__(self, replicas: Sequence[Backend]) -> None:
        first = replicas[0]  # all replicas are of one kind
        self.name = first.name
        self.dtype = first.dtype
        self.device = ",".join(replica.device for replica in replicas)
        self.layouts: tuple[BatchLayout, ...] = first.layouts
        self.batch_tokens = first.batch_tokens
        turns = [*replicas] * first.batches_at_once
        self.batches_at_once = len(turns)
        self._free: SimpleQueue[Backend] = SimpleQueue()
        for replica in turns:
            self._free.put(replica)

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        replica = self._free.get()
        try:
            return replica.forward(batch, capture=capture)
        finally:
            self._free.put(replica)
