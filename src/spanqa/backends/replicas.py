"""Several devices: one replica of the model on each, batches going to whichever is free."""

from collections.abc import Collection, Sequence
from queue import SimpleQueue

from spanqa.backends.base import Backend
from spanqa.batches import Batch, SpanLogits


class Replicas:
    """A backend that holds the same model on several devices; call it from as many threads to keep all busy."""

    def __init__(self, replicas: Sequence[Backend]) -> None:
        self.name = replicas[0].name
        self.dtype = replicas[0].dtype
        self.device = ",".join(replica.device for replica in replicas)
        turns = [*replicas] * replicas[0].batches_at_once  # all are of one kind
        self.batches_at_once = len(turns)
        self._free: SimpleQueue[Backend] = SimpleQueue()
        for replica in turns:
            self._free.put(replica)

    def forward(self, batch: Batch, *, attention: Collection[int] | None = None) -> SpanLogits:
        replica = self._free.get()
        try:
            return replica.forward(batch, attention=attention)
        finally:
            self._free.put(replica)
