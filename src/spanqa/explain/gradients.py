"""Scores of tokens from the gradients of a decision: how g moves with the word embeddings, or with the attention weights.

    gradient               L2 norm of dg/dx              x: the word embedding of a token
    gradient_x_input       <x, dg/dx>
    integrated_gradients   <x - x', dg/dx along the straight way from x' to x>: they add up to g(x) - g(x')
    gae, gae_abs           attention weights times their gradients, from the top layer down

The first three come from the word embeddings alone: positions, token types and the layers behind are the network's own. x' has the
mask token in the place of every word. Gradients are computed in the network's dtype, and added up in float64.

Needs PyTorch, since other backends have no gradients.

Sources: Sundararajan et al. 2017 (https://arxiv.org/abs/1703.01365), integrated gradients; Chefer et al. 2021
(https://arxiv.org/abs/2103.15679), equations 5 and 6, for gae; gae_abs takes |dg/dA * A| where they take max(0, dg/dA * A).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spanqa.backends.torch import TorchBackend
from spanqa.batches import pack
from spanqa.errors import BackendError
from spanqa.explain.decision import Objective
from spanqa.explain.explanation import Convergence
from spanqa.explain.words import Mask
from spanqa.progress import Progress, silent
from spanqa.windows import Window

FIRST_STEPS, MOST_STEPS = 32, 256
"""Numbers of steps of integrated gradients: doubled from the first until they converge, up to the most."""

LARGEST_GAP, LEAST_CHANGE = 0.05, 0.1
"""They have converged when the gap is below this share of g(x) - g(x'), taken as at least 0.1."""

_KEPT_NUMBERS = 2**27
"""What the points of one batch may keep for going backwards: 512 MiB in fp32. A single point may need more."""

_KEPT_PER_UNIT = 20
"""Numbers kept for each hidden unit of a token in each layer. Measured: 20 on spanqa-mini, 18 on BERT-large's shape (645 MiB a window)."""

_ESTIMATED = {"yoso"}
"""Architectures whose backward pass is an estimate, up to a sixth off; the others equal finite differences."""


def token_scores(
    backend: TorchBackend,
    objective: Objective,
    mask: Mask,
    method: str,
    *,
    deadline: float | None = None,
    progress: Progress = silent,
) -> tuple[list[NDArray[np.float64]], Convergence | None, int]:
    """Return the scores of all tokens, float64 `[window_length]` for each window; convergence where it applies; windows read.

    "gae" and "gae_abs" know no direction: they score what led to the chosen span alone, or to "no answer" where that was chosen; a
    start or an end that it shares with the other span does not count.
    `deadline`, a time of `time.monotonic()`, keeps integrated gradients from doubling their steps; the first 32 are always done.

    Raises:
        BackendError: the model gives no gradients with respect to its words, or no attention weights, or numbers that are not
            finite.
    """
    if backend.network.config.model_type in _ESTIMATED:
        raise _no_gradients(backend, "its attention only estimates them")
    convergence = None
    passes = len(objective.windows)
    if method == "integrated_gradients":
        scores, convergence, passes = _integrated(backend, objective, mask, deadline, progress)
    elif method in ("gradient", "gradient_x_input"):
        scores = []
        for window, weights in zip(objective.windows, objective.weights, strict=True):
            slopes = _slopes(backend, window, weights, mask, [1.0])
            if method == "gradient":
                scores.append(_numpy(slopes.gradients[0].norm(dim=-1)))
            else:
                scores.append(_numpy((slopes.words * slopes.gradients[0]).sum(-1)))
            progress(len(scores), passes)
    else:
        scores = _weighted_attention(backend, objective, method == "gae_abs", progress)
    if not all(np.isfinite(of_window).all() for of_window in scores):
        raise BackendError(
            f"Gradients are NaN or infinity, computing in {backend.dtype}: the numbers of this model are too large for it. Choose "
            "dtype='fp32', or method 'occlusion'."
        )
    return scores, convergence, passes


@dataclass(frozen=True, slots=True, eq=False)
class _Slopes:
    """g and its gradients at some points of a window's way from x' to x, and the two ends.

    `values` `[point]`, `gradients` `[point, token, unit]`, `words` (x) and `baseline` (x') `[token, unit]`.
    """

    values: NDArray[np.float64]
    gradients: torch.Tensor
    words: torch.Tensor
    baseline: torch.Tensor


def _integrated(
    backend: TorchBackend, objective: Objective, mask: Mask, deadline: float | None, progress: Progress
) -> tuple[list[NDArray[np.float64]], Convergence, int]:
    change = 0.0
    for window, weights in zip(objective.windows, objective.weights, strict=True):
        for share, sign in ((1.0, 1), (0.0, -1)):
            change += sign * float(_slopes(backend, window, weights, mask, [share]).values[0])
    passes = 2 * len(objective.windows)
    steps = FIRST_STEPS
    while True:
        begin = time.monotonic()
        scores = _integral(backend, objective, mask, steps, progress)
        passes += steps * len(objective.windows)
        gap = abs(sum(float(of_window.sum()) for of_window in scores) - change)
        relative = gap / max(abs(change), LEAST_CHANGE)
        found = Convergence(steps, gap, relative, relative < LARGEST_GAP)
        now = time.monotonic()
        next_ends = now + 2 * (now - begin)
        if found.converged or steps == MOST_STEPS or (deadline is not None and next_ends > deadline):
            return scores, found, passes
        steps *= 2


def _integral(
    backend: TorchBackend, objective: Objective, mask: Mask, steps: int, progress: Progress
) -> list[NDArray[np.float64]]:
    """Return integrated gradients by Gauss-Legendre quadrature with `steps` nodes."""
    nodes, lengths = np.polynomial.legendre.leggauss(steps)
    shares, parts = (1 + nodes) / 2, lengths / 2  # from [-1, 1] to [0, 1]
    total, done = steps * len(objective.windows), 0
    scores = []
    for window, weights in zip(objective.windows, objective.weights, strict=True):
        of_window = np.zeros(len(window))
        at_once = _points_at_once(backend, len(window))
        for first in range(0, steps, at_once):
            several = slice(first, first + at_once)
            slopes = _slopes(backend, window, weights, mask, shares[several].tolist())
            products = (slopes.gradients * (slopes.words - slopes.baseline)).sum(-1)
            of_window += parts[several] @ _numpy(products)
            done += len(shares[several])
            progress(done, total, f"{steps} steps")
        scores.append(of_window)
    return scores


def _points_at_once(backend: TorchBackend, length: int) -> int:
    config = backend.network.config
    layers, units = getattr(config, "num_hidden_layers", 12), getattr(config, "hidden_size", 768)
    tokens = min(backend.batch_tokens, _KEPT_NUMBERS // (_KEPT_PER_UNIT * layers * units))
    return max(1, tokens // length)


def _slopes(
    backend: TorchBackend, window: Window, weights: NDArray[np.float32], mask: Mask, shares: Sequence[float]
) -> _Slopes:
    """Return g and its gradients where x' + share * (x - x') takes the place of the word embeddings, for some shares."""
    batch = pack([[window]] * len(shares))
    with backend.differentiable() as network:
        arguments = backend.inputs(batch)
        ids = arguments["input_ids"]
        of = torch.tensor(shares, dtype=torch.float32, device=ids.device)
        with _words_as_leaf(backend, arguments, ids.masked_fill(_texts(window).to(ids.device), mask.id), of) as leaves:
            values = _value(network(**arguments), weights)
        leaf, words, baseline = leaves[0]
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
    gradients, words, baseline = (
        each.float()[:, : len(window)] for each in (gradients, words.detach(), baseline.detach())
    )
    return _Slopes(_numpy(values.detach()), gradients, words[0], baseline[0])


def _texts(window: Window) -> torch.Tensor:
    """Return which tokens of a window belong to the question or the passage: bool `[token]`."""
    texts = torch.zeros(len(window), dtype=torch.bool)
    question = len(window.template.before)
    texts[question : question + len(window.question)] = True
    texts[window.passage_start : window.passage_start + window.stop - window.first] = True
    return texts


def _value(output: Any, weights: NDArray[np.float32]) -> torch.Tensor:
    """Return g `[row]` from the logits of a window, one copy a row."""
    of_start, of_end = torch.from_numpy(weights).to(output.start_logits.device)
    value: torch.Tensor = output.start_logits.float() @ of_start + output.end_logits.float() @ of_end
    return value


@contextmanager
def _words_as_leaf(
    backend: TorchBackend, inputs: dict[str, torch.Tensor], baseline_ids: torch.Tensor, shares: torch.Tensor
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Put points between baseline (share 0) and words (share 1), one a row, in the place of the word embeddings.

    The network still gets the words' ids, from which some architectures derive positions. Gives a list that holds, after the
    network was called, the leaf of the graph, the words' own embeddings and the baseline's, each `[row, token, unit]`.

    Raises:
        BackendError: the network does not read all its words once, from the module that it names for it.
    """
    leaves: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    ids, types = inputs["input_ids"], inputs.get("token_type_ids")
    rows, cols = ids.shape

    def replace(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        given: Any = arguments[0] if arguments else None
        if leaves and types is not None and torch.equal(given, types):
            return output  # GPT-2 and XLM read token types from the same table
        turned = isinstance(given, torch.Tensor) and given.shape == (cols, rows) and torch.equal(given.T, ids)
        if turned:  # XLNet
            given = given.T
        same = isinstance(given, torch.Tensor) and given.dim() == 2 and torch.equal(given[:, :cols], ids)
        if leaves or not same or not isinstance(output, torch.Tensor) or output.dim() != 3:
            raise _no_gradients(backend, "it reads them more than once, or in another form than one row of tokens")
        other_ids = torch.cat([baseline_ids, given[:, cols:]], 1)  # Longformer adds padding
        words, baseline = output.detach(), module.forward(other_ids.T if turned else other_ids).detach()
        if turned:
            words, baseline = words.transpose(0, 1), baseline.transpose(0, 1)
        between = torch.lerp(baseline.float(), words.float(), shares[:, None, None])
        leaf = between.to(words.dtype).requires_grad_()
        leaves.append((leaf, words, baseline))
        return leaf.transpose(0, 1) if turned else leaf

    handle = backend.network.get_input_embeddings().register_forward_hook(replace)
    try:
        yield leaves
    finally:
        handle.remove()
    if not leaves:
        raise _no_gradients(backend, "it does not read them from its get_input_embeddings()")


def _weighted_attention(
    backend: TorchBackend, objective: Objective, absolute: bool, progress: Progress
) -> list[NDArray[np.float64]]:
    """Return the relevance of all tokens for the tokens whose logits were chosen, each for its own logit."""
    chosen = [[(int(which), int(token)) for which, token in np.argwhere(weights > 0)] for weights in objective.weights]
    spans = [[(which, token) for which, token in places if token > 0] for places in chosen]
    targets = spans if any(spans) else chosen  # the logits of [CLS], position 0, where "no answer" was chosen
    scores = []
    for window, places in zip(objective.windows, targets, strict=True):
        scores.append(_relevance_in(backend, window, places, absolute) if places else np.zeros(len(window)))
        progress(len(scores), len(objective.windows))
    return scores


def _relevance_in(
    backend: TorchBackend, window: Window, places: Sequence[tuple[int, int]], absolute: bool
) -> NDArray[np.float64]:
    total = np.zeros(len(window))
    with backend.differentiable(attention=True) as network:
        arguments = backend.inputs(pack([[window]]))
        ids = arguments["input_ids"]
        with _words_as_leaf(backend, arguments, ids, torch.ones(1, device=ids.device)) as leaves:
            output = network(**arguments, output_attentions=True)
        attentions = getattr(output, "attentions", None) or ()
        square = [one is not None and one.dim() == 4 and one.shape[2:] == (len(window),) * 2 for one in attentions]
        if not attentions or not all(square):
            raise _no_attention(backend, "it returns none from every token to every token")
        logits = (output.start_logits[0], output.end_logits[0])
        for which, token in places:
            total += _relevance(backend, attentions, logits[which][token], leaves[0][0], token, absolute)
    return total


def _relevance(
    backend: TorchBackend,
    attentions: Sequence[torch.Tensor],
    logit: torch.Tensor,
    leaf: torch.Tensor,
    token: int,
    absolute: bool,
) -> NDArray[np.float64]:
    """Return row `token` of R - I, R being the product of I + A' over the layers, A' the mean over heads of weighted attention.

    The backward pass meets the layers from the top down, as the row is multiplied, so no gradient of attention is kept.
    """
    start = torch.zeros(attentions[0].shape[-1], device=leaf.device)
    start[token] = 1
    row, met = start, []

    def weigh(layer: int, gradient: torch.Tensor) -> None:
        nonlocal row
        product = gradient[0].float() * attentions[layer].detach()[0].float()
        weights = product.abs() if absolute else product.clamp(min=0)
        row = row + row @ weights.mean(0)
        met.append(layer)

    handles = [
        attention.register_hook(lambda gradient, layer=layer: weigh(layer, gradient))
        for layer, attention in enumerate(attentions)
        if attention.requires_grad
    ]
    try:
        torch.autograd.grad(logit, leaf, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    if met != [*reversed(range(len(attentions)))]:
        raise _no_attention(backend, "what it returns are copies, which its logits do not depend on")
    return _numpy(row - start)


def _no_gradients(backend: TorchBackend, why: str) -> BackendError:
    return BackendError(
        f"{backend.model} gives no gradients with respect to its words: {why}. Choose method 'occlusion', which needs none."
    )


def _no_attention(backend: TorchBackend, why: str) -> BackendError:
    return BackendError(
        f"{backend.model} hides its attention weights: {why}. Choose method 'integrated_gradients' or 'occlusion', which need none."
    )


def _numpy(tensor: torch.Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return array
