"""Attention over windows that lie one behind the other in a single row, for transformers' models on torch.

transformers keeps apart the windows of a row only where it is told to; this function, registered with its
AttentionInterface, is told by `window_lengths`. On a CUDA device in half precision it is torch's variable-length flash
attention; elsewhere windows of one length that follow each other are computed together, so a row sorted by length needs
few calls. Nothing is padded.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "spanqa_flat"


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

    `window_lengths` are the lengths of the windows in the row, padding (if any) as a window of its own.
    """
    lengths = list(window_lengths)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _varlen(query, key, value, lengths, scaling), None
    runs = [(length, sum(1 for _ in run)) for length, run in groupby(lengths)]
    parts = zip(*(each[0].split([n * count for n, count in runs], dim=1) for each in (query, key, value)), strict=True)
    mixed = []
    for (_length, count), part in zip(runs, parts, strict=True):
        q, k, v = (tensor.unflatten(1, (count, -1)).transpose(0, 1) for tensor in part)  # (window, head, token, size)
        mixed.append(_attend(q, k, v, scaling, dropout).transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
) -> torch.Tensor:
    """Attention over `[window, head, token, size]`.

    torch's fused attention has a slow backward pass in bfloat16 on CPUs; the plain products are faster there.
    """
    if not (query.requires_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    return torch.dropout(scores.softmax(-1), dropout, train=dropout > 0) @ value


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=query.device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # (token, head, size)
    output: torch.Tensor = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
    return output[None]


AttentionInterface.register(NAME, flat_attention)
