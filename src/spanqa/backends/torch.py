"""PyTorch: transformers' own question-answering model, the very module that `spanqa train` trains.

What it needs: pip install 'spanqa[torch]'. What it gives beyond the others: GPUs, and every other architecture that
transformers has a question-answering head for (DeBERTa, ModernBERT, ...), one window a row.
"""

import inspect
from collections.abc import Collection
from threading import Lock
from typing import Any

import numpy as np
import torch
import transformers

from spanqa.backends import torch_attention
from spanqa.backends.base import chosen_layers
from spanqa.batches import PADDING, Batch, SpanLogits
from spanqa.checkpoint import Checkpoint, open_weights, verify_weights, weight_files
from spanqa.encoder import FAMILIES
from spanqa.errors import BackendError, CheckpointError, UnsupportedModelError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """A transformers question-answering model on one device."""

    name = "torch"
    batches_at_once = 1

    def __init__(self, model: torch.nn.Module, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        self.device = device
        self.dtype = dtype
        self._family = checkpoint.model_type in FAMILIES
        self._model: Any = model.to(device, _DTYPES[dtype]).eval()
        self._lock = Lock()  # the attention in use is a setting of the whole model
        self._usual = self._model.config._attn_implementation
        self._inputs = set(inspect.signature(model.forward).parameters)
        self._position_offset = checkpoint.encoder.position_offset if self._family else 0

    def forward(self, batch: Batch, *, attention: Collection[int] | None = None) -> SpanLogits:
        layers = chosen_layers(attention, self._model.config.num_hidden_layers)
        flat = attention is None and self._family and batch.shape[0] == 1 and batch.window_index[0, -1] > 0
        with self._lock:
            if attention is not None:
                self._use("eager")  # the others return no attention, and do not say so
                output = self._run(batch, output_attentions=True)
            elif flat:
                self._use(torch_attention.NAME)
                output = self._run(batch, window_lengths=_window_lengths(batch))
            else:
                self._use(self._usual)
                output = self._run(batch)
        found = {layer: _numpy(output.attentions[layer]) for layer in layers} if attention is not None else None
        return SpanLogits(_numpy(output.start_logits), _numpy(output.end_logits), found)

    def _use(self, attention: str) -> None:
        if self._model.config._attn_implementation != attention:
            self._model.set_attn_implementation(attention)

    def _run(self, batch: Batch, **options: Any) -> Any:
        with torch.inference_mode():
            return self._model(**self._arguments(batch), **options)

    def _arguments(self, batch: Batch) -> dict[str, torch.Tensor]:
        def tensor(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, torch.long)

        arguments = {"input_ids": tensor(batch.input_ids)}
        if "token_type_ids" in self._inputs:
            arguments["token_type_ids"] = tensor(batch.token_type_ids)
        packed = batch.window_index.max(initial=0) > 0
        if packed and not self._family:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} cannot read packed rows: nothing would keep its windows apart. Use padded batches."
            )
        if self._family:
            arguments["position_ids"] = tensor(batch.position_ids) + self._position_offset
        index = tensor(batch.window_index)
        if self._model.config._attn_implementation == torch_attention.NAME:
            return arguments  # it is told the lengths of the windows instead of a mask
        if packed:
            apart = index[:, None, :, None] != index[:, None, None, :]  # (row, 1, query, key)
            dtype = self._model.dtype
            arguments["attention_mask"] = torch.zeros(apart.shape, dtype=dtype, device=self.device).masked_fill_(
                apart, torch.finfo(dtype).min
            )
        else:
            arguments["attention_mask"] = (index != PADDING).long()
        return arguments


def _window_lengths(batch: Batch) -> list[int]:
    """The lengths of the windows of a single row without padding, in order."""
    return [int(length) for length in np.bincount(batch.window_index[0])]


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.float().cpu().numpy()


def _read_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Load the model; transformers would fill missing parameters with random numbers, so both sides check for them."""
    if checkpoint.model_type in FAMILIES:
        verify_weights(checkpoint)
    for path in weight_files(checkpoint.path):
        open_weights(path)  # a damaged file is ours to tell
    bars = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # what it would report, missing and unexpected names, is checked here
    try:
        model, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed in the report, as the missing ones are
        )
    except Exception as error:  # whatever transformers stumbles over in a config it does not know
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} cannot load {str(checkpoint.path)!r} ({checkpoint.model_type!r}) for question "
            f"answering: {error}"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise CheckpointError(
            f"{str(checkpoint.path)!r} lacks {len(lacking)} parameters, or has them in another shape: {', '.join(lacking[:6])}. "
            "Is this a checkpoint without a question-answering head?"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(
                f"{name} in {str(checkpoint.path)!r} holds NaN or infinity. The training diverged or the file is damaged."
            )
    return model


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> TorchBackend:
    """Make the backend. "auto" is the GPU where there is one, in bfloat16 where it has it; see `auto_dtype` for CPUs.

    `threads` sets torch's number for the whole process.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    _check_device(device)
    if dtype == "auto":
        dtype = auto_dtype(device)
    if dtype == "fp16" and torch.device(device).type == "cpu":
        raise BackendError(
            "Backend 'torch' computes fp16 on the cpu only by emulation, far slower than fp32. Use bf16 or fp32."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchBackend(_read_model(checkpoint, _DTYPES[dtype]), checkpoint, device, dtype)


def wrap(model: torch.nn.Module, checkpoint: Checkpoint, *, device: str, dtype: str) -> TorchBackend:
    """Make the backend around a model in memory: on its own device and in its own dtype, unless others are asked for.

    A half-precision model on a CPU is raised to float32, which is faster there and more exact.
    """
    parameter = next(model.parameters())
    device = str(parameter.device) if device == "auto" else device
    _check_device(device)
    names = {kind: name for name, kind in _DTYPES.items()}
    if dtype == "auto":
        dtype = names.get(parameter.dtype, "fp32")
    if dtype == "fp16" and torch.device(device).type == "cpu":
        dtype = "fp32"
    return TorchBackend(model, checkpoint, device, dtype)


def _check_device(device: str) -> None:
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device not in (*there, *(["cuda"] if torch.cuda.is_available() else [])):
        raise BackendError(f"Backend 'torch' sees no device {device!r} here. It sees: {', '.join(there)}.")


def auto_dtype(device: str) -> str:
    """bf16 where the processor multiplies it natively, else fp32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"
