"""Dropout by bytes: how much it drops, what it does to gradients, and that what is trained uses it."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from spanqa.backends.torch_attention import flat_attention  # noqa: E402
from spanqa.backends.torch_dropout import ByteDropout, byte_dropout, use_byte_dropout  # noqa: E402
from spanqa.checkpoint import open_checkpoint  # noqa: E402
from spanqa.train.run import _network  # noqa: E402
from spanqa.train.settings import TrainSettings  # noqa: E402


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_drops_its_share_wherever_the_element_lies_and_keeps_the_expectation(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = byte_dropout(torch.ones(8 * 100_000 + 3, dtype=dtype), p)
    assert dropped.dtype == dtype
    places = dropped[:-3].view(-1, 8)  # eight elements share a draw; none may fare better than another
    assert (places == 0).float().mean(0) == pytest.approx([p] * 8, abs=0.006)
    assert dropped.double().mean() == pytest.approx(1, abs=0.006)
    pairs = torch.corrcoef((places[:, :2] == 0).float().T)[0, 1]
    assert abs(pairs) < 0.02  # and one says nothing of its neighbour
    assert dropped.unique().numel() == 2


def test_a_gradient_is_dropped_where_the_value_was() -> None:
    torch.manual_seed(0)
    values = torch.randn(40, 50, requires_grad=True)
    dropped = byte_dropout(values, 0.25)
    dropped.sum().backward()
    assert torch.equal(values.grad, torch.where(dropped == 0, 0.0, 4 / 3))
    torch.testing.assert_close(dropped, values * values.grad)


def test_the_seed_decides_and_nothing_is_dropped_when_reading() -> None:
    layer, values = ByteDropout(0.3), torch.ones(1000)
    torch.manual_seed(1)
    first = layer(values)
    second = layer(values)
    torch.manual_seed(1)
    assert torch.equal(layer(values), first) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(values), values)
    assert torch.equal(ByteDropout(0.0)(values), values)
    assert torch.equal(byte_dropout(values, 1.0), torch.zeros(1000))


def test_every_dropout_of_a_network_is_by_bytes() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Dropout(0.2)), torch.nn.Dropout(0.4)
    )
    use_byte_dropout(network)
    found = [(module.p, type(module)) for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert found == [(0.2, ByteDropout), (0.4, ByteDropout)]


def test_what_is_trained_drops_by_bytes(tiny: Callable[..., Path]) -> None:
    network, _, _ = _network(open_checkpoint(tiny("bert")), TrainSettings(dropout=0.3))
    found = {(module.p, type(module)) for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {(0.3, ByteDropout)}


def test_attention_drops_by_bytes_while_training_in_bfloat16() -> None:
    queries = torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16, requires_grad=True)  # all keys get the same share
    values = torch.eye(16, dtype=torch.bfloat16)[None, None]  # so the output is the shares
    torch.manual_seed(0)
    mixed, _ = flat_attention(torch.nn.Module(), queries, queries, values, None, window_lengths=[16], dropout=0.25)
    torch.manual_seed(0)
    padded = torch.zeros(1, 1, 32, 32, dtype=torch.bfloat16)  # windows are widened to 32
    padded[..., :16] = 1 / 16
    assert torch.equal(mixed[0, :, 0], byte_dropout(padded, 0.25)[0, 0, :16, :16])
    assert (mixed == 0).any()
