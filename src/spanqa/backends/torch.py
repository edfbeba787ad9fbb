"""PyTorch: transformers' own question-answering model, the same module that `spanqa train` trains.

Needs: pip install 'spanqa[torch]'. Unlike the other backends it runs on GPUs, and runs every other architecture for which
transformers has a question-answering head (DeBERTa, ModernBERT, ...), one window per row.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
import transformers

from spanqa.backends import torch_attention
from spanqa.backends.base import BATCH_TOKENS, capture_positions, split_attention
from spanqa.backends.torch_networks import build_network, one_line
from spanqa.batches import PADDING, Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError, SpanQAError, UnsupportedModelError
from spanqa.families import FAMILIES

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_UNPADDED = {
    "big_bird", "bigbird_pegasus", "canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "reformer", "yoso",
}  # fmt: skip
"""Architectures that read the padding behind a window, masked or not: Fourier transforms, convolutions, pooling, blocks, hashes.

They get windows of one length at a time, without padding. Found by `test_no_architecture_of_transformers_depends_on_the_windows_beside_it`,
which runs all that transformers has.
"""

_MOVED = 0.03
"""Logits that differ by this share of the largest are those of another computation."""


class TorchBackend:
    """A transformers question-answering model on one device.

    `network` is the model, and `inputs` returns the tensors it is called with; `differentiable` lends it for computing gradients.
    `model` names it in errors. `attention_shape` are its numbers of layers and heads.
    """

    name = "torch"
    batch_tokens = BATCH_TOKENS
    batches_at_once = 1

    def __init__(self, network: torch.nn.Module, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        self.device = device
        self.dtype = dtype
        self.model = f"{str(checkpoint.path)!r} ({checkpoint.model_type!r})"
        self._family = checkpoint.model_type in FAMILIES
        self._unpadded = checkpoint.model_type in _UNPADDED
        self.network: Any = network.eval()
        self.layouts = _layouts(self._family, device, dtype)
        self._lock = Lock()  # the attention function is a setting of the whole network
        self._usual = self.network.config._attn_implementation
        self._records = self._usual == "sdpa"
        config = self.network.config
        self.attention_shape = (config.num_hidden_layers, getattr(config, "num_attention_heads", 0))
        compiled_from = getattr(network, "_orig_mod", network)  # torch.compile's wrapper hides the parameters
        self._parameters = set(inspect.signature(compiled_from.forward).parameters)
        self._position_offset = checkpoint.encoder.position_offset if self._family else 0
        self._padding = max(0, getattr(self.network.config, "pad_token_id", None) or 0)  # mBART asks where it begins
        self._sparse = [module for module in self.network.modules() if hasattr(module, "set_attention_type")]
        self._sparse_types = [module.attention_type for module in self._sparse]

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        if not self._unpadded:
            return self._forward(batch, capture)
        if capture is not None:
            capture_positions(batch, capture, self.attention_shape[0])  # errors name windows of this batch
        start, end = np.zeros(batch.shape, np.float32), np.zeros(batch.shape, np.float32)
        attention: dict[int, dict[int, Any]] = {}
        lengths = np.count_nonzero(batch.window_index != PADDING, axis=1)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            same = Batch(*(getattr(batch, name)[rows, :length] for name in Batch.__slots__))
            found = self._forward(same, capture and capture.of(rows.tolist()))
            start[rows, :length], end[rows, :length] = found.start, found.end
            for layer, windows in (found.attention or {}).items():
                attention.setdefault(layer, {}).update(zip(rows.tolist(), windows, strict=True))
        in_order = {layer: [windows[row] for row in sorted(windows)] for layer, windows in attention.items()}
        return SpanLogits(start, end, None if capture is None else in_order)

    def _forward(self, batch: Batch, capture: Capture | None) -> SpanLogits:
        queries = None if capture is None else capture_positions(batch, capture, self.attention_shape[0])
        rows: dict[int, torch.Tensor] = {}
        with self._lock, torch.inference_mode(), self._one_error(batch):
            for module, kind in zip(self._sparse, self._sparse_types, strict=True):
                module.set_attention_type(kind)  # BigBird changes it for good at the first short window
            if capture is None or queries is None:
                output = self._run(batch, self._usual)
            else:
                output, rows = self._run_and_keep(batch, capture.layers, torch.from_numpy(queries))
        attention = None
        if capture is not None:
            attention = split_attention(batch, capture, {layer: _numpy(each) for layer, each in rows.items()})
        return SpanLogits(_numpy(output.start_logits), _numpy(output.end_logits), attention)

    def _run(self, batch: Batch, attention: str, **options: Any) -> Any:
        """Call the network with an attention function; a flat row without a mask, unless all attention is asked for."""
        flat = self._family and batch.shape[0] == 1 and batch.window_index[0, -1] > 0
        if flat and not options:
            self._use(attention if attention == torch_attention.ROWS else torch_attention.FLAT)
            return self.network(**self._unmasked(batch), window_lengths=_window_lengths(batch))
        self._use(attention)
        return self.network(**self.inputs(batch), **options)

    def _run_and_keep(
        self, batch: Batch, layers: tuple[int, ...], queries: torch.Tensor
    ) -> tuple[Any, dict[int, torch.Tensor]]:
        """Call the network and return its output, and the wanted rows of attention: layer -> `[row, head, query, key]`.

        Where the network uses torch's own attention, once in each layer, the rows are computed beside it. Elsewhere transformers'
        eager functions are asked for all attention, and have to give the same logits.
        """
        queries = queries.to(self.device, torch.long)
        if self._records:
            with torch_attention.recording(layers, queries, batch.shape[1]) as record:
                output = self._run(batch, torch_attention.ROWS)
            if record.is_whole(self.attention_shape[0]):
                return output, record.found
            self._records = False
        eager = self._run(batch, "eager", output_attentions=True)
        output = eager if self._usual == "eager" else self._run(batch, self._usual)
        real = self._tensor(batch.window_index) != PADDING
        usual, moved = output.start_logits[real], (eager.start_logits - output.start_logits)[real]
        rows = torch_attention.rows_of(getattr(eager, "attentions", None) or (), queries, batch.shape[1])
        another = moved.abs().max() > _MOVED * usual.abs().max().clamp(
            min=1
        )  # Falcon's eager attention reads another mask
        if rows is None or len(rows) != self.attention_shape[0] or another:
            raise UnsupportedModelError(
                f"{self.model} does not show its attention: transformers {transformers.__version__} returns no weight for every "
                f"query and key of each of its {self.attention_shape[0]} layers. Explain its answers by occlusion or gradients, "
                "or use another model."
            )
        return output, {layer: rows[layer] for layer in layers}

    @contextmanager
    def _one_error(self, batch: Batch) -> Iterator[None]:
        """Turn whatever the model raises into one error that names it."""
        try:
            yield
        except SpanQAError:
            raise
        except Exception as error:
            rows, cols = batch.shape
            raise BackendError(
                f"{self.model} failed on {rows} x {cols} tokens in transformers {transformers.__version__}: "
                f"{type(error).__name__}: {one_line(error)}. Try shorter windows (max_seq_length) or a free device. If that does "
                "not help, this model cannot answer questions from a text alone: choose another one."
            ) from error

    @contextmanager
    def differentiable(self, *, attention: bool = False) -> Iterator[Any]:
        """Lend the network for computing gradients: it is in nobody else's hands meanwhile, and as before afterwards.

        With `attention` it computes attention in the way that returns the weights.

        Raises:
            BackendError: for whatever the model raises meanwhile, in one line that names it.
        """
        with self._lock, torch.inference_mode(False), torch.enable_grad():
            before = self.network.config._attn_implementation
            try:
                for module, kind in zip(self._sparse, self._sparse_types, strict=True):
                    module.set_attention_type(kind)
                self._use("eager" if attention else self._usual)
                yield getattr(self.network, "_orig_mod", self.network)
            except SpanQAError:
                raise
            except Exception as error:
                raise BackendError(
                    f"{self.model} failed to compute gradients in transformers {transformers.__version__}: {type(error).__name__}: "
                    f"{one_line(error)}. Choose method 'occlusion', which needs none, or shorter windows (max_seq_length) where "
                    "memory is short."
                ) from error
            finally:
                self._use(before)

    def _use(self, attention: str) -> None:
        if self.network.config._attn_implementation != attention:
            self.network.set_attn_implementation(attention)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the arguments of the network for a batch: `input_ids` and others `[rows, cols]`, and the attention mask.

        Raises:
            UnsupportedModelError: the batch is packed, and this architecture cannot keep its windows apart.
        """
        packed = batch.window_index.max(initial=0) > 0
        if packed and not self._family:
            raise UnsupportedModelError(
                f"{type(self.network).__name__} cannot read packed rows, because it cannot keep windows apart. Use padded batches."
            )
        arguments, index = self._unmasked(batch), self._tensor(batch.window_index)
        if packed:
            apart = index[:, None, :, None] != index[:, None, None, :]  # (row, 1, query, key)
            dtype = self.network.dtype
            arguments["attention_mask"] = torch.zeros(apart.shape, dtype=dtype, device=self.device).masked_fill_(
                apart, torch.finfo(dtype).min
            )
        else:
            arguments["attention_mask"] = (index != PADDING).long()
        return arguments

    def _unmasked(self, batch: Batch) -> dict[str, torch.Tensor]:
        padding = self._tensor(batch.window_index) == PADDING
        arguments = {"input_ids": self._tensor(batch.input_ids).masked_fill_(padding, self._padding)}
        if "token_type_ids" in self._parameters:
            arguments["token_type_ids"] = self._tensor(batch.token_type_ids)
        if self._family:
            arguments["position_ids"] = self._tensor(batch.position_ids) + self._position_offset
        return arguments

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, torch.long)


def _layouts(family: bool, device: str, dtype: str) -> tuple[BatchLayout, ...]:
    """Return the layouts a model reads, preferred one first: flat if torch has variable-length attention kernels, else padded."""
    if not family:
        return ("padded",)
    kernels = device.startswith("cuda") and dtype in ("bf16", "fp16")
    return ("flat", "padded", "packed") if kernels else ("padded", "packed", "flat")


def _window_lengths(batch: Batch) -> list[int]:
    """Return the lengths of the windows of a single row without padding, in order."""
    return [int(length) for length in np.bincount(batch.window_index[0])]


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.float().cpu().numpy()


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """Create the backend. "auto" is the GPU if there is one, with the dtype of `auto_dtype`.

    `threads` sets the number of torch threads for the whole process.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    _check_device(device)
    if dtype == "auto":
        dtype = auto_dtype(device)
    if dtype == "fp16" and torch.device(device).type == "cpu":
        raise BackendError(
            "Backend 'torch' computes fp16 on cpu only by emulation, which is far slower than fp32. Use dtype 'bf16' or 'fp32'."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    network, _ = build_network(checkpoint, _DTYPES[dtype])
    return TorchBackend(network.to(device, _DTYPES[dtype]), checkpoint, device, dtype)


def wrap(model: torch.nn.Module, checkpoint: Checkpoint, *, device: str, dtype: str) -> TorchBackend:
    """Create the backend around a model in memory, on the model's device and in its dtype unless others are requested.

    The model stays as it is, in training mode or not: the backend computes on modules of its own, without dropout. They share the
    model's parameters, and so follow its training; for another device or dtype they have parameters of their own. A half-precision
    model on a CPU is computed in float32, which is faster there and more exact.

    Raises:
        BackendError: the device does not exist, or the model cannot be copied.
    """
    parameters = list(model.parameters())
    own = parameters[0].device
    device = str(own) if device == "auto" else device
    _check_device(device)
    names = {kind: name for name, kind in _DTYPES.items()}
    shared = torch.device(device).type == own.type and torch.device(device).index in (None, own.index)
    if dtype == "auto":
        dtype = names.get(parameters[0].dtype, "fp32")
    else:
        shared = shared and all(parameter.dtype == _DTYPES[dtype] for parameter in parameters)
    if dtype == "fp16" and torch.device(device).type == "cpu":
        dtype, shared = "fp32", False
    try:
        kept = {id(tensor): tensor for tensor in (*parameters, *model.buffers())} if shared else {}
        network = copy.deepcopy(model, kept)
    except Exception as error:  # a module may hold anything
        raise BackendError(
            f"{type(model).__name__} cannot be copied: {error}. Save the model and its tokenizer, and give their folder."
        ) from error
    return TorchBackend(network if shared else network.to(device, _DTYPES[dtype]), checkpoint, device, dtype)


def _check_device(device: str) -> None:
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    found += ["mps"] if torch.backends.mps.is_available() else []
    if device not in (*found, *(["cuda"] if torch.cuda.is_available() else [])):
        raise BackendError(
            f"Backend 'torch' does not see device {device!r} on this machine. Choose one of: {', '.join(found)}."
        )


def auto_dtype(device: str) -> str:
    """Return bf16 if the device multiplies it natively; else fp16 on CUDA and fp32 elsewhere."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"
