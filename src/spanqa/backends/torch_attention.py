"""Attention over windows that follow each other in a single row, for transformers' models on torch.

By default transformers does not keep the windows of a row apart. This function is registered with its AttentionInterface and
receives the lengths of the windows as `window_lengths`. On a CUDA device in half precision it uses torch's variable-length flash
attention. Elsewhere consecutive windows of equal length are computed together, so a row sorted by length needs few calls, and
nothing is padded. (Training in bfloat16 on CPUs is different: see `_plain`.)
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from spanqa.backends.torch_dropout import byte_dropout

NAME = "spanqa_flat"

_WIDTH_MULTIPLE = 32


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


AttentionInterface.register(NAME, flat_attention)
