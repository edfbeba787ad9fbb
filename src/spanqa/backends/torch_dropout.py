"""Dropout for training on CPUs. Torch draws one random number per element there, which takes a large part of a step.

One byte is enough to decide whether an element is kept, so one draw of 64 bits decides for eight elements.
"""

import torch

_BYTE = 256


def byte_dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """Set elements to 0 with probability `p`, rounded to a 256th, and scale the others so that the expectation is unchanged.

    If the values are not on a CPU, or `p` rounds to 0 or 1, torch's own dropout is used.
    """
    dropped = round(p * _BYTE)
    if values.device.type != "cpu" or not 0 < dropped < _BYTE:
        return torch.dropout(values, p, train=True)
    draws = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(1 << 63), None)
    keep = (draws.view(torch.uint8)[: values.numel()] >= dropped).view(values.shape)
    return (values * keep).mul_(_BYTE / (_BYTE - dropped))


class ByteDropout(torch.nn.Dropout):  # type: ignore[misc]
    """Torch's dropout layer, with `byte_dropout` during training."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the values; during training some of them are set to 0."""
        return byte_dropout(input, self.p) if self.training else input


def use_byte_dropout(network: torch.nn.Module) -> None:
    """Replace the dropout layers of a network by `ByteDropout`, in place."""
    for module in network.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = ByteDropout
