"""API keys: read from a file or the environment, and kept as digests only.

A key is text that we did not choose and cannot replace, so that its SHA-256 is all that stays in memory: `ServeSettings.keys` holds
digests, and neither its repr nor a log can show a key. A digest is as hard to guess as its key; short keys are refused.

    # keys.txt: one key a line                                SPANQA_API_KEYS="4f1c...e2, 90ab...77"
    4f1c0f7d6c1b4e0f9d5a8f2b6c3d1ee2
"""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from spanqa.errors import InputError

_LOG = logging.getLogger(__name__)

VARIABLE = "SPANQA_API_KEYS"
"""The environment variable with keys, between commas or white space."""

SHORTEST = 16
"""Characters of the shortest key."""


def digest(key: str | bytes) -> str:
    """Return the SHA-256 of a key, in hexadecimal.

    >>> digest("0123456789abcdef")[:12]
    '9f9f5111f7b2'
    """
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def read_keys(path: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the digests of the keys in a file and in the environment variable, each once.

    A file has a key a line; blank lines and lines that begin with # are skipped. A file that other users can read gets a warning.

    Raises:
        InputError: the file cannot be read, others can write it, it holds no key, or a key is too short or has characters that no
            header can carry.
    """
    keys: list[str] = [] if path is None else _of_file(Path(path))
    given = environment.get(VARIABLE)
    if given is not None:
        found = [("", key) for key in re.split(r"[,\s]+", given) if key]
        if not found:
            raise InputError(f"{VARIABLE} is set, but holds no key. Unset it, or put keys in it, separated by commas.")
        keys += _digests(VARIABLE, found)
    return tuple(dict.fromkeys(keys))


def _of_file(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"The file of API keys {str(path)!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The file of API keys {str(path)!r} is not text in UTF-8.") from None
    if os.name == "posix" and mode & 0o022:
        raise InputError(
            f"Other users can write the file of API keys {str(path)!r}, so its keys cannot be trusted. Run: chmod 600 {path}"
        )
    if os.name == "posix" and mode & 0o044:
        _LOG.warning("Other users can read the file of API keys %r. Run: chmod 600 %s", str(path), path)
    lines = [(f", line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    found = [(place, line) for place, line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"The file of API keys {str(path)!r} holds no key. Write one a line.")
    return _digests(str(path), found)


def _digests(where: str, keys: Iterable[tuple[str, str]]) -> list[str]:
    found = []
    for place, key in keys:
        if len(key) < SHORTEST:
            raise InputError(
                f"{where}{place}: an API key has {len(key)} characters; expected at least {SHORTEST}. "
                'Make one with: python -c "import secrets; print(secrets.token_hex(16))"'
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise InputError(
                f"{where}{place}: an API key has a blank or a character outside ASCII, which no header can carry. Choose another."
            )
        found.append(digest(key))
    return found


def known(presented: bytes, digests: Iterable[str]) -> str | None:
    """Return the digest of a key if it is one of these. How long that takes does not depend on which it is."""
    mine, found = digest(presented), None
    for each in digests:
        if hmac.compare_digest(mine, each):
            found = each
    return found
