"""Whether a file is still what it was: by its size, its times and its content."""

import hashlib
import os
from typing import Any, Dict

# Blocks of the content that are looked at every time, evenly over the file. One of four MiB or less
# is looked at as a whole.
_BLOCKS, _BLOCK_SIZE = 64, 2**16


def fingerprint(path: str, *, whole: bool = False) -> Dict[str, Any]:
    """What is remembered of a file.

    Args:
        path (str): a local file.
        whole (bool): read all of it, for the key ``sha256``.

    Returns:
        dict: of JSON's types.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as f:
        stat = os.fstat(f.fileno())
        found = {
            "size": stat.st_size,
            "modified": stat.st_mtime_ns,
            # These two tell a file that was written to and given its old time again.
            "changed": stat.st_ctime_ns,
            "inode": stat.st_ino,
            "sample": _sample(f, stat.st_size),
        }
        if whole:
            f.seek(0)
            found["sha256"] = _sha256(f)
    return found


def is_unchanged(path: str, before: Dict[str, Any]) -> bool:
    """Whether a file is what it was when its fingerprint was taken.

    Its whole content is read only where the size and the time are the same, but the file was
    copied, moved or touched since.

    Args:
        path (str): a local file.
        before (dict): of :func:`fingerprint`; of one without ``whole``, a copy counts as changed.

    Raises:
        OSError: if it cannot be read.
    """
    now = fingerprint(path)
    if any(now[key] != before.get(key) for key in ("size", "modified", "sample")):
        return False
    if all(now[key] == before.get(key) for key in ("changed", "inode")):
        return True
    return "sha256" in before and fingerprint(path, whole=True)["sha256"] == before["sha256"]


def _sample(f, size: int) -> str:
    digest = hashlib.sha256()
    step = max(_BLOCK_SIZE, (size - _BLOCK_SIZE) / (_BLOCKS - 1))
    for i in range(_BLOCKS):
        f.seek(min(round(i * step), size))
        digest.update(f.read(_BLOCK_SIZE))
    return digest.hexdigest()


def _sha256(f) -> str:
    digest = hashlib.sha256()
    while block := f.read(2**20):
        digest.update(block)
    return digest.hexdigest()
