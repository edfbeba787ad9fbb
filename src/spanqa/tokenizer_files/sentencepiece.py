"""Reads the model file of SentencePiece: its pieces with their scores, and its table of compatibility forms.

The file is a protocol buffer message, `ModelProto`. The few fields that matter are read from the wire format, so that neither
the library SentencePiece nor protobuf is needed. What a family makes of the pieces is in `spanqa.tokenizer_files.vocabularies`.

Source: google/sentencepiece, src/sentencepiece_model.proto; protobuf.dev, "Encoding".
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spanqa.errors import CheckpointError

UNIGRAM = 1
"""`algorithm` of a model whose pieces have scores."""

UNKNOWN, CONTROL = 2, 3
"""`kind` of the piece for characters that have none, and of a piece that no text has (<s>).

Others: 1 normal, 4 always one token (the trainer was told so), 5 unused, 6 byte.
"""


class Piece(NamedTuple):
    """A token of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a model file contains: `charsmap` is the table that replaces compatibility forms, b"" where there is none."""

    pieces: tuple[Piece, ...]
    charsmap: bytes
    algorithm: int


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        CheckpointError: it cannot be read, or is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    pieces: list[Piece] = []
    charsmap, algorithm = b"", UNIGRAM
    try:
        for field, value in _fields(data):
            if field == 1:
                pieces.append(_piece(_bytes(value)))
            elif field == 2:  # the settings of the trainer
                algorithm = next((_number(v) for f, v in _fields(_bytes(value)) if f == 3), UNIGRAM)
            elif field == 3:  # the normalizer
                charsmap = next((_bytes(v) for f, v in _fields(_bytes(value)) if f == 2), b"")
    except (ValueError, IndexError, struct.error) as error:  # UnicodeDecodeError is a ValueError
        raise CheckpointError(
            f"{str(path)!r} is not a whole SentencePiece model: {error}. Fetch or copy it again."
        ) from None
    if not pieces:
        raise CheckpointError(
            f"{str(path)!r} is not a whole SentencePiece model: it has no pieces. Fetch or copy it again."
        )
    return SentencePieceModel(tuple(pieces), charsmap, algorithm)


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(message):
        if field == 1:
            text = _bytes(value).decode()
        elif field == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif field == 3:
            kind = _number(value)
    return Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field: an integer, or the bytes of everything else."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, place = _varint(message, place)
            yield field, value
            continue
        if wire_type == 2:
            size, place = _varint(message, place)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"byte {place - 1} has the wire type {wire_type}")
        end = place + size
        if end > len(message):
            raise ValueError(f"it ends {end - len(message)} bytes early")
        yield field, message[place:end]
        place = end


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the integer at a place, seven bits in each byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError(f"byte {place - 1} is part of a number of more than 64 bits")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number is where a text should be")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a text is where a number should be")
    return value
