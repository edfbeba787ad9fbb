"""The spanqa that lies beside this file, if any: checked, unpacked into a folder of this process, and put on the path.

import carried

carried.use()
from spanqa import Reader
"""

import atexit
import hashlib
import io
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "{{ wheel }}"  # "": pip has installed spanqa
SHA256 = "{{ sha256 }}"


def use() -> None:
    """Check the version of Python, and make `import spanqa` find the wheel. Does nothing the second time."""
    if sys.version_info < (3, 11):  # noqa: UP036
        found = "{}.{}".format(*sys.version_info)
        raise RuntimeError(f"This is Python {found}; spanqa needs 3.11 or newer. Choose an image that has it.")
    if not WHEEL or any(Path(place).name.startswith("spanqa-carried-") for place in sys.path):
        return
    wheel = (Path(__file__).parent / WHEEL).read_bytes()
    sha256 = hashlib.sha256(wheel).hexdigest()
    if sha256 != SHA256:
        raise RuntimeError(f"The SHA-256 of {WHEEL} is {sha256}; expected {SHA256}. Copy the folder again.")
    folder = tempfile.mkdtemp(prefix="spanqa-carried-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as files:
        files.extractall(folder)
    sys.path.insert(0, folder)
