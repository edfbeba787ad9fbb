"""Attention in files: safetensors, with the tokens and where the weights come from beside the weights.

    attn.00, attn.01, ...      F16 or F32 [head, query, key]          one for each layer that was captured
    layers heads queries       I32                                    their numbers; with "reduce", attn has the mean of the heads
    input_ids word_ids         I32 [token]                            input_ids only in a file with texts
    offsets                    I32 [token, 2]                         in question or passage, in code points
    sequence_ids               I8 [token]                             0 question, 1 passage, -1 special
    start_logits end_logits    F32 [token]                            NaN where no answer can start or end
    __metadata__               format, window, windows, answered, span, reduce and made_with, and either question, passage and
                               tokens, or question_sha256 and passage_sha256; all but texts and hashes as JSON

`spanqa.explain.attention.Attention` says what each means. Nothing is pickled, and equal attention gives equal bytes: the header is
written here, because the safetensors library orders metadata at random.
"""

import hashlib
import json
import os
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from spanqa.errors import DatasetError, InputError
from spanqa.explain.attention import Attention
from spanqa.files import read_bytes, replacing

FORMAT = "spanqa.attention/1"

_DTYPES = {"<f2": "F16", "<f4": "F32", "<i4": "I32", "|i1": "I8"}
_JSON = ("window", "windows", "answered", "span", "reduce", "made_with")
_TOKEN_ARRAYS = {
    **dict.fromkeys(("input_ids", "word_ids", "offsets"), "int32"),
    "sequence_ids": "int8",
    **dict.fromkeys(("start_logits", "end_logits"), "float32"),
}


def save(
    attention: Attention,
    path: str | os.PathLike[str],
    *,
    dtype: Literal["float16", "float32"] = "float16",
    text: bool = True,
) -> None:
    """Write attention to a file; in float16 a weight is off by at most 0.0003.

    Without `text` no word of question or passage is in the file, nor an id that stands for one: their hashes are.

    Raises:
        InputError: there is no such dtype, or the file cannot be written.
    """
    if dtype not in ("float16", "float32"):
        raise InputError(f"dtype is {dtype!r}; expected 'float16' or 'float32'.")
    arrays = {f"attn.{layer:02}": weights for layer, weights in attention.arrays.items()}
    dtypes: dict[str, Any] = dict.fromkeys(arrays, dtype)
    for name in ("layers", "heads", "queries"):
        arrays[name], dtypes[name] = np.array(getattr(attention, name)), "int32"
    for name in _TOKEN_ARRAYS:
        if text or name != "input_ids":
            arrays[name], dtypes[name] = getattr(attention, name), getattr(attention, name).dtype
    metadata = {"format": FORMAT, **{name: _json(getattr(attention, name)) for name in _JSON}}
    texts = {"question": attention.question, "passage": attention.passage}
    if text:
        metadata |= texts | {"tokens": _json(attention.tokens)}
    else:
        metadata |= {f"{name}_sha256": hashlib.sha256(each.encode()).hexdigest() for name, each in texts.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    order = sorted(arrays, key=lambda name: (-np.dtype(dtypes[name]).itemsize, name))  # so that all are aligned
    at = 0
    for name in order:
        kind = np.dtype(dtypes[name]).newbyteorder("<")
        end = at + arrays[name].size * kind.itemsize
        header[name] = {"dtype": _DTYPES[kind.str], "shape": arrays[name].shape, "data_offsets": [at, end]}
        at = end
    described = _json(header).encode()
    described += b" " * (-len(described) % 8)
    try:
        with replacing(path, "wb") as file:
            file.write(len(described).to_bytes(8, "little") + described)
            for name in order:
                file.write(arrays[name].astype(np.dtype(dtypes[name]).newbyteorder("<")).tobytes())
    except OSError as error:
        raise InputError(
            f"Attention cannot be written to {os.fspath(path)!r}: {error.strerror}. Name a file in a folder that can be written to."
        ) from error


def load(path: str | os.PathLike[str]) -> Attention:
    """Read attention from a file. One without texts gives "" for them and for the tokens, and -1 for the ids.

    Raises:
        DatasetError: the file cannot be read, is damaged, or holds something else.
    """
    data = read_bytes(path)
    try:
        arrays = safetensors.numpy.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise KeyError("format")
        attention = _attention(arrays, metadata)
        wrong = _wrong(attention, texts="question" in metadata)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise DatasetError(
            f"{os.fspath(path)!r} is not a whole file of attention ({FORMAT}): {wrong:.200}. Write it again with spanqa."
        )
    return attention


def _attention(arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Attention:
    texts = "question" in metadata
    values: dict[str, Any] = {name: json.loads(metadata[name]) for name in _JSON}
    values["span"] = None if values["span"] is None else tuple(values["span"])
    values |= {name: tuple(arrays[name].tolist()) for name in ("layers", "heads", "queries")}
    values |= {name: arrays[name] for name in _TOKEN_ARRAYS if texts or name != "input_ids"}
    values["arrays"] = {layer: arrays[f"attn.{layer:02}"].astype(np.float32) for layer in values["layers"]}
    if texts:
        values |= {"question": metadata["question"], "passage": metadata["passage"]}
        values["tokens"] = tuple(json.loads(metadata["tokens"]))
    else:
        count = len(arrays["sequence_ids"])
        values |= {"question": "", "passage": "", "tokens": ("",) * count, "input_ids": np.full(count, -1, np.int32)}
    return Attention(**values)


def _wrong(attention: Attention, *, texts: bool) -> str:
    """Return what does not fit in what was read, "" for nothing. Places are compared with the texts, where there are any."""
    count = len(attention.tokens)
    for name, dtype in _TOKEN_ARRAYS.items():
        array, shape = getattr(attention, name), (count, 2) if name == "offsets" else (count,)
        if (array.dtype, array.shape) != (dtype, shape):
            return f"{name} is {array.dtype} of shape {array.shape}, expected {dtype} of shape {shape}"
    expected = (len(attention.heads) if attention.reduce is None else 1, len(attention.queries), count)
    for layer, weights in attention.arrays.items():
        if weights.shape != expected or not np.isfinite(weights).all():
            return f"layer {layer} has the shape {weights.shape}, expected {expected} finite weights"
    for name in ("layers", "heads", "queries"):
        numbers = getattr(attention, name)
        if len(set(numbers)) != len(numbers) or not all(type(number) is int and number >= 0 for number in numbers):
            return f"{name} are no different numbers from zero"
    first, last = (0, 0) if attention.span is None else attention.span
    places = [*attention.queries, *(attention.span or ())]
    if not all(isinstance(token, str) for token in attention.tokens) or not set(places) <= set(range(count)):
        return f"tokens, queries or span do not fit {count} tokens"
    single = (attention.window, attention.windows, first, last)
    if (
        not all(type(number) is int for number in single)
        or not 0 <= attention.window < attention.windows
        or first > last
    ):
        return "window, windows or span are no numbers that fit"
    if type(attention.answered) is not bool or attention.reduce not in (None, "mean"):
        return f"answered is {attention.answered!r} and reduce {attention.reduce!r}"
    if not isinstance(attention.made_with, dict):
        return "made_with names nothing"
    "".join(attention.tokens).encode()  # half a surrogate pair is a ValueError
    if not np.isin(attention.sequence_ids, (-1, 0, 1)).all():
        return "sequence_ids are not -1, 0 and 1"
    for part, text in enumerate((attention.question, attention.passage)):
        starts, ends = attention.offsets[attention.sequence_ids == part].T
        if texts and not ((starts >= 0) & (starts <= ends) & (ends <= len(text))).all():
            return f"offsets do not fit a text of {len(text)} characters"
    return ""


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
