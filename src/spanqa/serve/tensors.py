"""How Open Inference Protocol v2 writes tensors over HTTP: as JSON, or as bytes behind the JSON. It knows no questions.

    body        JSON, as many bytes as the header Inference-Header-Content-Length says; then each binary tensor, in the order of the JSON
    a tensor    `data`, flat or nested; or parameters.binary_data_size, and its bytes behind the JSON
    BYTES       each element: its length in bytes as uint32, then these bytes
    FP32, INT64 the numbers, row by row; all of this little-endian

Sources: open-inference-protocol, specification/protocol/inference_rest.md; Triton, docs/protocol/extension_binary_data.md.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from spanqa.serve.problems import Problem
from spanqa.serve.routes.bodies import Body, Some, TextOrTexts, bounded

LENGTH_HEADER = "inference-header-content-length"
"""The length of the JSON in a body that has bytes behind it."""


class InputParameters(Body):
    """Where the data of a tensor are."""

    binary_data_size: int | None = Field(None, ge=0)
    """Bytes of this tensor behind the JSON; then there is no `data`."""


class TextTensor(Body):
    """Texts, as [n] or as [n, 1]."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    parameters: InputParameters | None = None
    data: Some[TextOrTexts] | None = None
    """The texts, flat or nested."""


class OutputTensor(BaseModel):
    """A tensor of a response."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32", "INT64"]
    parameters: dict[str, int] | None = Field(None, description="binary_data_size, where the data are bytes.")
    data: list[Any] | None = Field(None, description="The elements, flat, where they are JSON.")


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be sent: texts, or numbers of type float32 or int64. `binary`: as bytes behind the JSON."""

    name: str
    shape: tuple[int, ...]
    values: Sequence[str] | NDArray[np.float32] | NDArray[np.int64]
    binary: bool = False


def split(body: bytes, length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a body, and the bytes behind it. `length` is the value of the header, where there is one.

    Raises:
        Problem: "bad_request", the body has no such length.
    """
    if length is None:
        return body, memoryview(b"")
    if not (length.isascii() and length.isdecimal() and len(length) < 18 and 0 < int(length) <= len(body)):
        raise Problem(
            "bad_request",
            f"Inference-Header-Content-Length: expected a number from 1 to {len(body)}, the bytes of the body.",
        )
    return body[: int(length)], memoryview(body)[int(length) :]


def read_texts(tensors: Sequence[TextTensor], blob: memoryview, most: int) -> dict[str, list[str]]:
    """Return the texts of each tensor by its name; `blob` holds those that are bytes, one behind the other.

    Raises:
        Problem: "bad_request", the bytes are cut off or left over; "validation", a tensor is not what it says, there are two of a
            name, or one has more than `most` elements.
    """
    found: dict[str, list[str]] = {}
    used = 0
    for tensor in tensors:
        if tensor.name in found:
            raise Problem("validation", f"inputs: there are two of the name {tensor.name[:60]!r}.")
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        count = _count(tensor, most)
        if (size is None) == (tensor.data is None):
            raise Problem("validation", f"{tensor.name[:60]}: give either data or parameters.binary_data_size.")
        if tensor.data is not None:
            found[tensor.name] = _flat(tensor, tensor.data, count)
        elif size is not None:
            if size > len(blob) - used:
                raise Problem(
                    "bad_request",
                    f"{tensor.name[:60]}: binary_data_size is {bounded(size)}, but {len(blob) - used:,} bytes are left behind the JSON. "
                    "Inference-Header-Content-Length is the length of the JSON.",
                )
            found[tensor.name] = _elements(tensor.name[:60], blob[used : used + size], count)
            used += size
    if used < len(blob):
        raise Problem("bad_request", f"The body has {len(blob) - used:,} bytes more than its tensors.")
    return found


def _count(tensor: TextTensor, most: int) -> int:
    """Return how many elements the shape says."""
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise Problem(
            "validation",
            f"{tensor.name[:60]}: its shape is [{', '.join(map(bounded, tensor.shape))}]; expected [n] or [n, 1].",
        )
    count = math.prod(tensor.shape)
    if not 1 <= count <= most:
        raise Problem("validation", f"{tensor.name[:60]}: has {bounded(count)} elements; expected 1 to {most}.")
    return count


def _flat(tensor: TextTensor, data: Sequence[str | list[str]], count: int) -> list[str]:
    """Return the elements of data that are flat, or nested once."""
    nested = bool(data) and isinstance(data[0], list)
    ragged = any(isinstance(each, list) != nested or (nested and len(each) != 1) for each in data)
    if len(data) != count or ragged:
        raise Problem(
            "validation",
            f"{tensor.name[:60]}: its data are not {count} texts in one list, or each in a list of its own.",
        )
    return [each if isinstance(each, str) else each[0] for each in data]


def _elements(name: str, blob: memoryview, count: int) -> list[str]:
    """Return so many elements of type BYTES, which must be UTF-8."""
    texts, place = [], 0
    for number in range(count):
        if place + 4 > len(blob):
            raise Problem(
                "bad_request", f"{name}: its {len(blob):,} bytes hold {number} elements; its shape says {count}."
            )
        (length,) = struct.unpack_from("<I", blob, place)
        place += 4
        if length > len(blob) - place:
            raise Problem(
                "bad_request", f"{name}: element {number} is {length:,} bytes long, but {len(blob) - place:,} are left."
            )
        try:
            texts.append(str(blob[place : place + length], "utf-8"))
        except UnicodeDecodeError:
            raise Problem("validation", f"{name}: element {number} is not UTF-8.") from None
        place += length
    if place < len(blob):
        raise Problem("bad_request", f"{name}: has {len(blob) - place:,} bytes more than its {count} elements.")
    return texts


def write(response: dict[str, Any], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """Return the body of a response with these tensors, and the length of its JSON if there are bytes behind it."""
    blobs: list[bytes] = []
    tensors = []
    for output in outputs:
        values = output.values
        datatype = "BYTES" if not isinstance(values, np.ndarray) else "FP32" if values.dtype == np.float32 else "INT64"
        tensor: dict[str, Any] = {"name": output.name, "shape": list(output.shape), "datatype": datatype}
        if output.binary:
            blobs.append(_bytes(values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)
        tensors.append(tensor)
    head = json.dumps(
        {**response, "outputs": tensors}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()
    return b"".join((head, *blobs)), len(head) if blobs else None


def _bytes(values: Sequence[str] | NDArray[np.float32] | NDArray[np.int64]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(each)) + each for each in encoded)
