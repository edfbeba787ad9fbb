#!/usr/bin/env python3
"""Answer a question with vLLM's engine in this process: python ask.py QUESTION PASSAGE.

spanqa cuts the passage into windows and decodes the answer; vLLM computes the logits, from token ids and segment ids.
"""

import json
import sys
from pathlib import Path

import numpy as np
from vllm import LLM, PoolingParams

from spanqa import Reader
from spanqa.batches import SpanLogits
from spanqa.checkpoint import open_checkpoint


class Engine:
    """A backend of spanqa whose logits come from vLLM's engine."""

    name, device, dtype, layouts, batch_tokens, batches_at_once = "vllm", "cuda", "fp32", ("padded",), 4096, 1

    def __init__(self, model, longest):
        self.engine = LLM(model=str(model), runner="pooling", dtype="float32", max_model_len=longest)

    def forward(self, batch, *, capture=None):
        """Return the logits of a batch; padding is not sent."""
        assert capture is None, "vLLM returns no attention"
        seen = batch.window_index >= 0
        prompts, params = [], []
        for ids, types, mask in zip(batch.input_ids, batch.token_type_ids, seen, strict=True):
            prompts.append({"prompt_token_ids": ids[mask].tolist()})
            # Where the ones begin: the form in which vLLM hands segment ids to the model. False: logits, not their softmax.
            first = int(np.flatnonzero(types[mask])[0])
            assert types[mask][first:].all(), "the segment ids are not zeros, then ones"
            params.append(PoolingParams(use_activation=False, extra_kwargs={"compressed_token_type_ids": first}))
        outputs = self.engine.encode(prompts, params, pooling_task="token_classify", use_tqdm=False)
        logits = np.zeros((*batch.shape, 2), np.float32)
        for row, output in enumerate(outputs):
            logits[row, seen[row]] = output.outputs.data.float().cpu().numpy()
        return SpanLogits(logits[..., 0], logits[..., 1])


if __name__ == "__main__":
    question, passage = sys.argv[1:]
    model = Path(__file__).parent / "model"
    with Reader(open_checkpoint(model), Engine(model, int("{{ longest }}"))) as reader:
        print(json.dumps(reader.ask(question, passage).as_json(question), indent=2, ensure_ascii=False))
