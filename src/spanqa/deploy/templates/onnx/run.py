#!/usr/bin/env python3
"""Answer a question: python run.py QUESTION PASSAGE. Needs: pip install numpy onnxruntime tokenizers"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers

MOST_TOKENS, THRESHOLD = int("{{ most }}"), float("{{ threshold }}")

here, (question, passage) = Path(__file__).parent, sys.argv[1:]
session = onnxruntime.InferenceSession(here / "model.onnx")
tokenizer = tokenizers.Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
cut = tokenizer.truncation  # windows that a long question leaves little room share less
tokenizer.no_truncation()
room = cut["max_length"] - len(tokenizer.encode(question, "").ids)
if room < 1:
    sys.exit(f"The question leaves no room for the passage in windows of {cut['max_length']} tokens. Shorten it.")
tokenizer.enable_truncation(**cut | {"stride": min(cut["stride"], room // 2)})
best = (-np.inf, 0, 0)
for window in [first := tokenizer.encode(question, passage), *first.overflowing]:
    columns = {"input_ids": window.ids, "attention_mask": window.attention_mask, "token_type_ids": window.type_ids}
    feeds = {each.name: np.array([columns[each.name]], np.int64) for each in session.get_inputs()}
    start, end = (logits[0] for logits in session.run(["start_logits", "end_logits"], feeds))
    readable = np.array(window.sequence_ids) == 1
    legal = np.triu(np.tril(np.outer(readable, readable), MOST_TOKENS - 1))
    no_answer = start[0] + end[0]
    margins = np.where(legal, start[:, None] + end - no_answer, -np.inf)
    first_token, last_token = divmod(int(margins.argmax()), len(start))
    best = max(best, (margins.max(), window.offsets[first_token][0], window.offsets[last_token][1]))
margin, begin, stop = best
print(f"{passage[begin:stop].strip() if margin >= THRESHOLD else ''!r} margin over no answer: {margin:.4f}")
