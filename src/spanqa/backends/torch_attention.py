"""Two attention functions for transformers' models on torch, registered with its AttentionInterface.

    FLAT   windows that follow each other in a single row, kept apart
    ROWS   the fast attention, unchanged, that also keeps the attention weights of a few queries

By default transformers does not keep the windows of a row apart. FLAT receives the lengths of the windows as `window_lengths`. On a
CUDA device in half precision it uses torch's variable-length flash attention. Elsewhere consecutive windows of equal length are
computed together, so a row sorted by length needs few calls, and nothing is padded. (Training in bfloat16 on CPUs is different:
see `_plain`.)

The fast attention never has the weights that transformers' own way to them ("eager" attention, `output_attentions`) keeps: of every
query, head and layer. ROWS computes the softmax again for the wanted queries of the wanted layers, and leaves the output as it is.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spanqa.backends.torch_dropout import byte_dropout

FLAT = "spanqa_flat"
ROWS = "spanqa_rows"

_WIDTH_MULTIPLE = 32
_SUM_OFF = 0.03
"""Rows whose sum is this far from one are no attention weights (in bf16 sums are off by 0.01)."""


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    window_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output `[1, token, head, size]` of query, key and value `[1, head, token, size]`.

    `window_lengths` are the lengths of the windows in the row. Padding, if any, counts as one more window.
    """
    lengths = list(window_lengths)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _varlen(query, key, value, lengths, scaling), None
    if query.requires_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _plain(query, key, value, lengths, scaling, dropout), None
    runs = [(length, sum(1 for _ in run)) for length, run in groupby(lengths)]
    parts = zip(*(each[0].split([n * count for n, count in runs], dim=1) for each in (query, key, value)), strict=True)
    mixed = []
    for (_length, count), part in zip(runs, parts, strict=True):
        q, k, v = (tensor.unflatten(1, (count, -1)).transpose(0, 1) for tensor in part)  # (window, head, token, size)
        found = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        mixed.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)[None], None


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Compute attention by plain matrix products, to train in bfloat16 on CPUs: torch's fused attention is slow backward there.

    Windows are padded to a multiple of 32 tokens, because oneDNN compiles its kernels for each new shape and keeps 1,024 of them.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    windows = [tensor[0].split(lengths, dim=1) for tensor in (query, key, value)]
    mixed: list[torch.Tensor] = []
    for width, run in groupby(lengths, lambda length: -(-length // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE):
        group, at = list(run), len(mixed)
        q, k, v = (
            torch.stack([pad(part, (0, 0, 0, width - part.shape[1])) for part in parts[at : at + len(group)]])
            for parts in windows
        )  # (window, head, width, size)
        scores = (q * scaling) @ k.transpose(2, 3)
        beyond = torch.arange(width) >= torch.tensor(group)[:, None]
        scores = scores.masked_fill(beyond[:, None, None], -torch.inf)
        found = (byte_dropout(scores.softmax(-1), dropout) @ v).transpose(1, 2)
        mixed += [window[:length] for window, length in zip(found, group, strict=True)]
    return torch.cat(mixed)[None]


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=query.device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # (token, head, size)
    output: torch.Tensor = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
    return output[None]


@dataclass(eq=False)
class Recording:
    """What ROWS keeps of one forward pass over `[row, token]`.

    `queries` int64 `[row, query]` are the wanted tokens, `found` layer -> float32 `[row, head, query, key]`. Layers are counted by
    the calls of the attention function, `calls` in all.
    """

    layers: Collection[int]
    queries: torch.Tensor
    tokens: int
    calls: int = 0
    found: dict[int, torch.Tensor] = field(default_factory=dict)

    def is_whole(self, layers: int) -> bool:
        """Return whether attention was computed once in each of the model's layers, and the wanted ones were found."""
        return self.calls == layers and self.found.keys() == set(self.layers)


_RECORDING: ContextVar[Recording] = ContextVar("spanqa_recording")


@contextmanager
def recording(layers: Collection[int], queries: torch.Tensor, tokens: int) -> Iterator[Recording]:
    """Keep rows of attention of the forward pass in the `with` block, for a network that uses ROWS."""
    record = Recording(layers, queries, tokens)
    token = _RECORDING.set(record)
    try:
        yield record
    finally:
        _RECORDING.reset(token)


def rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return what FLAT (if `window_lengths` are given) or torch's own attention returns, and record the wanted rows."""
    lengths = options.get("window_lengths")
    fast = ALL_ATTENTION_FUNCTIONS["sdpa"] if lengths is None else flat_attention
    output: tuple[torch.Tensor, None] = fast(module, query, key, value, attention_mask, **options)
    record = _RECORDING.get()
    layer = record.calls
    record.calls += 1
    tokens = (len(record.queries), record.tokens)
    if layer in record.layers and tokens == (len(query), query.shape[2]) == (len(key), key.shape[2]):
        if lengths is not None:
            window = torch.repeat_interleave(torch.tensor(lengths, device=query.device))
            attention_mask = (window[:, None] == window)[None, None]
        record.found[layer] = _weights(module, query, key, attention_mask, record.queries, **options)
    return output


def _weights(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    queries: torch.Tensor,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Return the attention weights of a few queries: float32 `[row, head, query, key]`.

    `mask` and `position_bias` are broadcast to `[row, head, token, token]`; the mask is true where a query may look, or added.
    """
    shape = (*query.shape[:2], query.shape[2], key.shape[2])

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # heads can share their keys
    scores = (_picked(query, queries) @ keys.transpose(2, 3) * scale).float()
    if position_bias is not None:
        scores += _picked(position_bias.expand(shape), queries)
    least = torch.finfo(torch.float32).min
    if mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        later = torch.arange(shape[3], device=query.device) > queries[:, None, :, None]
        scores = scores.masked_fill_(later, least)
    elif mask is not None:
        seen = _picked(mask.expand(shape), queries)
        scores = scores.masked_fill_(~seen, least) if mask.dtype == torch.bool else scores + seen
    return scores.softmax(-1)


def rows_of(whole: Sequence[torch.Tensor | None], queries: torch.Tensor, tokens: int) -> list[torch.Tensor] | None:
    """Return a few queries' rows of the attention of all layers, as transformers returned it; None where it is something else."""
    found = []
    for each in whole:
        if each is None or each.dim() != 4 or (each.shape[0], *each.shape[2:]) != (len(queries), tokens, tokens):
            return None  # each layer of Longformer sees a part of the tokens
        rows = _picked(each, queries).float()
        if ((rows.sum(-1) - 1).abs() > _SUM_OFF).any():
            return None  # SqueezeBERT gives the scores before the softmax
        found.append(rows)
    return found


def _picked(whole: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return `[row, head, query, ...]` of `[row, head, token, ...]`; `queries` is `[row, query]`."""
    row = torch.arange(len(queries), device=queries.device)[:, None]
    return whole.transpose(1, 2)[row, queries].transpose(1, 2)


AttentionInterface.register(FLAT, flat_attention)
AttentionInterface.register(ROWS, rows_attention)
AttentionMaskInterface.register(ROWS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
