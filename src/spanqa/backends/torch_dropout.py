"""Dropout for training on CPUs, where torch draws one random number for each element, which takes much of a step.

A byte is enough to tell whether an element stays: one draw of 64 bits decides on eight.
"""

import torch

_BYTE = 256


def byte_dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """Set elements to 0 with probability `p`, rounded to a 256th, and scale the others so that the expectation stays.

    torch's own dropout where the values are not on a CPU, or p rounds to 0 or 1.
    """
    dropped = round(p * _BYTE)
    if values.device.type != "cpu" or not 0 < dropped < _BYTE:
        return torch.dropout(values, p, train=True)
    draws = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(1 << 63), None)
    keep = (draws.view(torch.uint8)[: values.numel()] >= dropped).view(values.shape)
    return (values * keep).mul_(_BYTE / (_BYTE - dropped))


class ByteDropout(torch.nn.Dropout):  # type: ignore[misc]
    """torch's layer, with `byte_dropout` while training."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the values, some of them dropped while training."""
        return byte_dropout(input, self.p) if self.training else input


def use_byte_dropout(network: torch.nn.Module) -> None:
    """Turn the dropout layers of a network into those above, in place."""
    for module in network.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = ByteDropout
