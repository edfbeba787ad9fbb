#!/usr/bin/env python3
"""Answer a question with a vLLM server: python ask.py QUESTION PASSAGE [http://127.0.0.1:8000].

spanqa cuts the passage into windows and decodes the answer; vLLM computes the logits, from token ids.
"""

import json
import sys
import urllib.request
from pathlib import Path

import numpy as np

from spanqa import Reader
from spanqa.batches import SpanLogits
from spanqa.checkpoint import open_checkpoint


class Served:
    """A backend of spanqa whose logits come from vLLM's /pooling."""

    name, device, dtype, layouts, batch_tokens, batches_at_once = "vllm", "remote", "fp32", ("padded",), 4096, 1

    def __init__(self, address):
        self.address = f"{address.rstrip('/')}/pooling"

    def forward(self, batch, *, capture=None):
        """Return the logits of a batch; padding is not sent."""
        assert capture is None, "vLLM returns no attention"
        seen = batch.window_index >= 0
        rows = [ids[mask].tolist() for ids, mask in zip(batch.input_ids, seen, strict=True)]
        # Without "use_activation": false, vLLM returns the softmax of the two logits.
        body = json.dumps({"model": "{{ name }}", "task": "token_classify", "use_activation": False, "input": rows})
        request = urllib.request.Request(self.address, body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            data = json.load(response)["data"]
        logits = np.zeros((*batch.shape, 2), np.float32)
        for each in data:
            logits[each["index"], seen[each["index"]]] = each["data"]
        return SpanLogits(logits[..., 0], logits[..., 1])


question, passage, *address = sys.argv[1:]
checkpoint = open_checkpoint(Path(__file__).parent / "model")
with Reader(checkpoint, Served(*(address or ["http://127.0.0.1:8000"]))) as reader:
    print(json.dumps(reader.ask(question, passage).as_json(question), indent=2, ensure_ascii=False))
