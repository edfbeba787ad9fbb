"""Attention rollout: the attention of all layers, multiplied into one weight for each token.

    M[l]   0.5 (mean of the heads' weights in layer l) + 0.5 I      the residual connection carries the other half
    R      M[top] ... M[1] M[0]

R[i, j] is how much of what token i has at the top began as token j. Of R only the rows of the answer's start and end tokens are
wanted, so a single row is carried down, a few layers in memory at a time. Rollout has no sign, and knows nothing of the logits.

Source: Abnar & Zuidema 2020 (https://arxiv.org/abs/2005.00928).
"""

import numpy as np
from numpy.typing import NDArray

from spanqa.explain.attention import attention_shape, layers_at_once, read_layers
from spanqa.explain.decision import Decision
from spanqa.progress import Progress, silent
from spanqa.reader import Reader


def token_scores(
    reader: Reader, decision: Decision, *, progress: Progress = silent
) -> tuple[list[NDArray[np.float64]], int]:
    """Return the rollout of each deciding window, `[token]`, which sums to 1, and the number of windows read.

    It starts at the start and end tokens, in equal parts, of the spans that the window decides; a token that is the start, or the
    end, of both spans does not count.

    Raises:
        UnsupportedModelError: the model is one that does not show its attention.
    """
    layers = range(attention_shape(reader)[0])[::-1]
    objective = decision.objective()
    passes = [-(-len(layers) // layers_at_once(reader, each, len(each))) for each in objective.windows]
    found = []
    for number, (window, weights) in enumerate(zip(objective.windows, objective.weights, strict=True)):
        before = sum(passes[:number])

        def shift(done: int, total: int, note: str = "", before: int = before) -> None:
            progress(before + done, sum(passes), note)

        row = np.abs(weights).sum(0, dtype=np.float64)
        row[0] = 0.0  # "no answer" is on the other side of each span
        row /= row.sum()
        for _, attention in read_layers(reader, window, layers, range(len(window)), progress=shift):
            row = 0.5 * (row @ attention.mean(0)) + 0.5 * row
        found.append(row)
    return found, sum(passes)
