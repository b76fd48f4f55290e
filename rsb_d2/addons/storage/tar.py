"""Images inside tar files: ``images.tar!/a.jpg``, at any place of the file at once.

Where each member is, is found once per machine and kept in the cache folder; processes share it.
"""

import contextlib
import hashlib
import io
import os
import posixpath
import tarfile
from typing import BinaryIO, Dict, List, Tuple

import numpy as np
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock, get_cache_dir
from portalocker.exceptions import LockException

from ...data.cache.arrays import (
    STREAM,
    Arrays,
    UnusableFile,
    gather_arrays,
    read_arrays,
    write_arrays,
)
from ...data.cache.fingerprint import fingerprint, is_unchanged
from ...errors import UserError
from ...files import escape_address

_MARK = ".tar!"
_VERSION = 1
_open_tars: Dict[str, "TarIndex"] = {}


def split_tar_path(path: str) -> Tuple[str, str] | None:
    """The tar file and the member of a path as ``images.tar!/a.jpg``.

    Args:
        path (str): any path.

    Returns:
        tuple[str, str]: the member is "" for the tar file as a whole; None for any other path.
    """
    end = path.lower().find(_MARK) + len(_MARK)
    tar, member = path[: end - 1], path[end:]
    if end < len(_MARK) or (member and not member.startswith("/")):
        return None
    return tar, _normal(member)


def _normal(member: str) -> str:
    member = posixpath.normpath(member.strip("/")) if member.strip("/") else ""
    return "" if member == "." else member


class TarIndex:
    """Where the members of a tar file are.

    Args:
        path (str): an uncompressed tar file.
        arrays (Arrays): made by :func:`_list_members`.
    """

    def __init__(self, path: str, arrays: Arrays):
        self._descriptor = os.open(path, os.O_RDONLY)
        self._arrays = arrays.arrays

    def find(self, member: str) -> Tuple[int, int] | None:
        """The offset and the size of a member in bytes; None if it is not there."""
        digest = _digest(member)
        place = int(np.searchsorted(self._arrays["digests"], digest))
        if place == len(self._arrays["digests"]) or self._arrays["digests"][place] != digest:
            return None
        return tuple(self._arrays["places"][place].tolist())

    def read(self, member: str) -> bytes:
        """The content of a member.

        Raises:
            FileNotFoundError: if it is not there.
        """
        found = self.find(member)
        if found is None:
            raise FileNotFoundError(member)
        offset, size = found
        content = os.pread(self._descriptor, size, offset)  # which workers do not disturb
        while len(content) < size:
            more = os.pread(self._descriptor, size - len(content), offset + len(content))
            if not more:
                raise OSError("the tar file is cut short")
            content += more
        return content

    def names(self) -> List[str]:
        """All members that are files, in the order of the tar file."""
        text = self._arrays[STREAM].tobytes().decode("utf-8", "surrogateescape")
        return [name for name in text.split("\0") if name]


def open_tar(path: str) -> TarIndex:
    """Find out where the members of a tar file are, or take it from the cache folder.

    Args:
        path (str): anything that Detectron2's ``PathManager`` opens.

    Returns:
        TarIndex: kept until the process ends.

    Raises:
        OSError: if the file cannot be read.
        UserError: if it is no uncompressed tar file.
    """
    if path not in _open_tars:
        local = PathManager.get_local_path(escape_address(path))
        _open_tars[path] = TarIndex(local, _find_members(os.path.abspath(local)))
    return _open_tars[path]


def open_member(path: str) -> BinaryIO:
    """Open a member of a tar file.

    Args:
        path (str): as ``images.tar!/a.jpg``.

    Raises:
        FileNotFoundError, OSError, UserError: if there is none.
    """
    tar, member = split_tar_path(path)
    return io.BytesIO(open_tar(tar).read(member))


def _find_members(path: str) -> Arrays:
    folder = os.path.join(get_cache_dir(), "rsb_d2", "tar")
    name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    cached = os.path.join(folder, f"{os.path.basename(path)[:100]}-{name}.safetensors")
    found = _reuse(cached, path)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(file_lock(cached))
            found = _reuse(cached, path)
            if found is not None:
                return found
        except (OSError, LockException):
            return gather_arrays(*_list_members(path))
        stream, finish = _list_members(path)
        try:
            write_arrays(cached, stream, finish)
            return read_arrays(cached)
        except (UserError, UnusableFile, OSError):  # it is found anew in each process
            return gather_arrays(stream, finish)


def _reuse(cached: str, path: str) -> Arrays | None:
    try:
        arrays = read_arrays(cached)
    except (OSError, UnusableFile):
        return None
    header = arrays.header
    if header.get("source") != [_VERSION, path] or not is_unchanged(path, header["file"]):
        return None
    return arrays


def _list_members(path: str) -> tuple:
    file = fingerprint(path, whole=False)
    try:
        with tarfile.open(path, "r:") as tar:
            members = [m for m in tar if m.isreg() and not m.issparse()]
    except tarfile.TarError as e:
        raise UserError(
            f"{path} is no uncompressed tar file ({e}); pack the images as they are, with tar cf"
        ) from None
    names = {_normal(m.name): (m.offset_data, m.size) for m in members}
    digests = np.array([_digest(name) for name in names], dtype=np.int64)
    order = np.argsort(digests)
    if len(np.unique(digests)) < len(digests):
        raise UserError(f"{path}: two names in it have the same digest; rename one of them")
    places = np.array(list(names.values()), dtype=np.int64).reshape(-1, 2)
    header = {"source": [_VERSION, path], "file": file}
    arrays = {"digests": digests[order], "places": places[order]}
    text = "".join(f"{name}\0" for name in names)
    return [text.encode("utf-8", "surrogateescape")], lambda: (header, arrays)


def _digest(name: str) -> int:
    name = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)
