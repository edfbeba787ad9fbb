"""transformers' models with the weights of a checkpoint: for question answering, and for masked language modelling.

transformers fills missing parameters with random numbers. Here they are an error, but for a head that may be new.
"""

import math
from typing import Any

import numpy as np
import torch
import transformers

from spanqa import weights
from spanqa.checkpoint import Checkpoint
from spanqa.errors import CheckpointError, UnsupportedModelError
from spanqa.families import FAMILIES


def build_network(
    checkpoint: Checkpoint, dtype: torch.dtype, *, new_head: bool = False, **changes: Any
) -> tuple[Any, bool]:
    """Return transformers' question-answering model with the checkpoint's weights, and whether they include the head.

    transformers would fill missing parameters with random numbers. Here they are an error, except for the head if `new_head` is
    true. `changes` are changes to the config. The weights are read from the open files.

    Raises:
        CheckpointError: parameters are missing, unexpected, of another shape, NaN or infinity.
        UnsupportedModelError: transformers has no question-answering model for this architecture.
    """
    files, where = checkpoint.weights, repr(str(checkpoint.path))
    if checkpoint.model_type in FAMILIES and not new_head:
        weights.verify(files, checkpoint.encoder, where)
    network, missing, misshapen = _built("question answering", checkpoint, dtype, changes)
    lacking = [name for name in missing if not (new_head and name.startswith("qa_outputs."))] + misshapen
    if lacking:
        raise CheckpointError(
            f"{where} lacks {len(lacking)} parameters or has them in another shape: {weights.some(lacking)}. "
            + (
                "Check that it is an encoder and was saved completely."
                if new_head
                else "Check that the checkpoint has a question-answering head and was saved completely."
            )
        )
    return network, not missing


def build_masked_lm(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, bool]:
    """Return transformers' masked language model with the checkpoint's weights, and whether they include the head.

    A missing head is new, and its last layer is tied to the token embeddings.

    Raises:
        CheckpointError: parameters of the encoder are missing or of another shape, or any are NaN or infinity.
        UnsupportedModelError: transformers has no masked language model for this architecture.
    """
    where = repr(str(checkpoint.path))
    network, missing, misshapen = _built("masked language modelling", checkpoint, dtype, {})
    lacking = [name for name in missing if name.startswith(f"{network.base_model_prefix}.")] + misshapen
    if lacking:
        raise CheckpointError(
            f"{where} lacks {len(lacking)} parameters or has them in another shape: {weights.some(lacking)}. Check that it is an "
            "encoder and was saved completely."
        )
    if missing and not network.config.tie_word_embeddings:
        network, _, _ = _built("masked language modelling", checkpoint, dtype, {"tie_word_embeddings": True})
    return network, not missing


def question_answering_head(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the parameters of the head that answers questions, in float32; {} where there is none."""
    names = weights.modern_names(checkpoint.weights)
    return {
        modern: _tensor(checkpoint.weights.read(name)).float()
        for modern, name in names.items()
        if modern.startswith("qa_outputs.")
    }


_KINDS = {
    "question answering": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "masked language modelling": transformers.MODEL_FOR_MASKED_LM_MAPPING,
}


def _built(
    task: str, checkpoint: Checkpoint, dtype: torch.dtype, changes: dict[str, Any]
) -> tuple[Any, list[str], list[str]]:
    """Return transformers' model for a task, and the names of its parameters that the checkpoint lacks or has in another shape."""
    files, where = checkpoint.weights, repr(str(checkpoint.path))
    state = {modern: _tensor(files.read(name)) for modern, name in weights.modern_names(files).items()}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # missing and unexpected names, which it would report, are checked here
    try:
        config = transformers.CONFIG_MAPPING[checkpoint.model_type].from_dict({**checkpoint.config, **changes})
        kind = _KINDS[task][type(config)]
        _check_size(kind, config, files, where)
        network, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed in the report, like missing ones
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers can fail in many ways on a config that it does not know
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} cannot load {where} ({checkpoint.model_type!r}) for {task}: "
            f"{one_line(error)}. Check config.json, or update transformers."
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return network, sorted(map(str, report["missing_keys"])), sorted(map(str, report["mismatched_keys"]))


def _check_size(kind: Any, config: Any, files: weights.WeightFiles, where: str) -> None:
    """Compare the size of the model that config.json describes with that of the stored one, before memory is taken for it."""
    layers, stored = getattr(config, "num_hidden_layers", 0), sum(map(math.prod, files.shapes.values()))
    if isinstance(layers, int) and layers > max(len(files.shapes), 1):
        raise CheckpointError(
            f"{where} has {layers:,} layers by config.json, but only {len(files.shapes):,} parameters are stored. Weights and "
            "config.json do not fit together; was the model saved whole?"
        )
    with torch.device("meta"):
        asked = sum(parameter.numel() for parameter in kind(config).parameters())
    if asked > 2 * stored + 10_000_000:  # a parameter that two layers share is stored once; a head may be new
        raise CheckpointError(
            f"{where} has {asked:,} numbers by config.json, but only {stored:,} are stored. Weights and config.json do not fit "
            "together; was the model saved whole?"
        )


def _tensor(array: Any) -> torch.Tensor:
    """Return a tensor that shares the array's memory. NumPy's bfloat16, which torch does not know, is passed as its bits."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def one_line(error: Exception) -> str:
    """Return the first line of an error's message, without control characters."""
    lines = str(error).strip().splitlines() or ["without a message"]
    return "".join(character if character.isprintable() else " " for character in lines[0])[:300].rstrip(".")
