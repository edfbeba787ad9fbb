"""Values as data files hold them: flags, starts of answers, and lists that pandas or NumPy wrote as text.

    is_missing       nothing, in JSON, CSV and pandas
    read_flag        true and false, in all their spellings
    read_start       where an answer starts
    read_structure   "['1911', '1954']", "[22 30]", "{'text': array(['1911'], dtype=object)}", or JSON

A wrong value raises `DatasetError` with its place. This module opens no file and knows no format.
"""

import ast
import json
import math
import re
import warnings
from typing import Any

from spanqa.errors import DatasetError

_NOTHING = {"", "nan", "none", "null", "<na>"}
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")
_LONGEST_TEXT = 1 << 31

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"""|(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"""
    r"""|(?P<name>[A-Za-z_][\w.]*)|(?P<mark>[][{}():,=])|\s+""",
    re.DOTALL,
)
_NAMES = {"None": None, "nan": None, "True": True, "False": False}


def is_missing(value: Any) -> bool:
    """Return whether a value says nothing: None, NaN, or an empty text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)


def read_flag(value: Any, name: str, place: str) -> bool:
    """Return a flag: true and false, 1 and 0, also as text in any case. Nothing is False.

    >>> [read_flag(value, "is_impossible", "row 1") for value in (True, "False", "TRUE", 0, 1.0, None)]
    [True, False, True, False, True, False]

    Raises:
        DatasetError: it is anything else.
    """
    if _says_nothing(value):
        return False
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise DatasetError(f'{place}: "{name}" is {value!r:.60}; expected true or false, or 1 or 0.')
    return flag


def read_start(value: Any, place: str) -> int | None:
    """Return the start of an answer in code points; None where nothing, or a negative number, says that it is unknown.

    >>> [read_start(value, "row 1") for value in (30, "30", "30.0", [30], -1, "")]
    [30, 30, 30, 30, None, None]

    Raises:
        DatasetError: it is not a whole number.
    """
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if _says_nothing(value):
        return None
    start: float | None = None
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        start = int(value.strip().partition(".")[0])
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        start = value
    if start is None or start != int(start) or abs(start) > _LONGEST_TEXT:
        raise DatasetError(f"{place}: the answer's start is {value!r:.60}; expected a whole number of characters.")
    return None if start < 0 else int(start)


def _says_nothing(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def read_structure(text: str) -> Any:
    r"""Return the list or object that a text stands for, written as JSON, by Python's `repr`, or by NumPy.

    NumPy writes no commas between the elements of an array, so texts that follow each other are separate elements.

    >>> read_structure('["1911"]'), read_structure("['in 1911' '1911']"), read_structure("{'a': array([22, 30], dtype=int32)}")
    (['1911'], ['in 1911', '1911'], {'a': [22, 30]})

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    except RecursionError as error:
        raise ValueError(str(error)) from None
    literal = " ".join(_literal(_tokens(text)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes that Python would not write
            value = ast.literal_eval(literal)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{text!r:.60} is neither a list nor an object")
    return value


def _tokens(text: str) -> list[tuple[str, str]]:
    """Return the kind and the text of each token."""
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position : position + 20]!r} is not part of a list or object")
        position = match.end()
        if match.lastgroup:
            tokens.append((match.lastgroup, match.group()))
    return tokens


def _literal(tokens: list[tuple[str, str]]) -> list[str]:
    """Return the tokens of the same value as Python's literals: without calls and their keywords, and with all commas."""
    found: list[str] = []
    rest = [*tokens, ("", ""), ("", "")]
    position = 0
    while position < len(tokens):
        kind, token = tokens[position]
        following = rest[position + 1][1]
        if kind == "name" and following == "=":  # dtype=int32, dtype='<U4', shape=(0,)
            position = _after_value(rest, position + 2)
            if found and found[-1] == ",":
                found.pop()
            continue
        position += 1
        if kind == "name" and following == "(":  # array(...), np.int64(...)
            continue
        if kind == "name":
            if token not in _NAMES:
                raise ValueError(f"{token!r} is not part of a list or object")
            token = str(_NAMES[token])
        if found and found[-1] not in "[{(,:" and token not in "]}),:":
            found.append(",")
        found.append(token)
    return found


def _after_value(tokens: list[tuple[str, str]], position: int) -> int:
    """Return the position behind a keyword's value: a name, a text, or a tuple."""
    if tokens[position][1] != "(":
        return position + 1
    while position < len(tokens) and tokens[position][1] != ")":
        position += 1
    return position + 1
