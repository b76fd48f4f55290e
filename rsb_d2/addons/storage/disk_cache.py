"""Copies of files in a folder of limited size: what was used longest ago goes first."""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from typing import List, Tuple

from iopath.common.file_io import get_cache_dir

logger = logging.getLogger(__name__)

DEFAULT_GIGABYTES = 10.0
# Shares of the limit. Room is made when the folder is as full as the first, until it is no fuller
# than the second, so that this is not done for every file. What a process writes between two looks
# at the folder is the third: with forty processes it keeps below its limit.
_FULL, _AFTER, _UNSEEN = 0.8, 0.7, 0.005
# Seconds after which half of a file is nobody's any more.
_ABANDONED = 3600


_settings: Tuple[str | None, float] = None, DEFAULT_GIGABYTES


def set_cache(folder: str | None, gigabytes: float) -> None:
    """Set where copies are kept, for this process.

    Args:
        folder (str or None): "" for none, None for the default.
        gigabytes (float): their size in 10^9 bytes, at most.
    """
    global _settings
    _settings = folder, float(gigabytes)


class DiskCache:
    """Files by their address, shared by all processes that use the same folder.

    Nothing is locked: a file takes its place as a whole, and one that another process has removed
    is one that is not there.

    Args:
        folder (str): made when it is needed; "" for no cache.
        limit (int): bytes of all files together.
    """

    def __init__(self, folder: str, limit: int):
        self._folder = folder if limit > 0 else ""
        self._limit = limit
        self._unseen = limit  # the folder is looked at before the first file is written
        self._is_broken = False

    @classmethod
    def of_settings(cls) -> "DiskCache":
        """The one that :func:`set_cache` asks for."""
        folder, gigabytes = _settings
        if folder is None:
            folder = os.path.join(get_cache_dir(), "rsb_d2", "images")
        limit = int(gigabytes * 1e9)
        key = os.getpid(), folder, limit
        if key not in _caches:
            _caches[key] = cls(folder, limit)
        return _caches[key]

    def get(self, address: str) -> bytes | None:
        """The content that is kept for an address; None if there is none."""
        if not self._folder:
            return None
        path = self._path(address)
        try:
            with open(path, "rb") as f:
                content = f.read()
            with contextlib.suppress(OSError):
                os.utime(path)  # the time of the last use; a file system may not keep its own
            return content
        except OSError:
            return None

    def put(self, address: str, content: bytes) -> None:
        """Keep the content of an address, if there is room for it."""
        if not self._folder or self._is_broken or len(content) > self._limit * _AFTER:
            return
        path = self._path(address)
        try:
            self._unseen += len(content)
            if self._unseen > self._limit * _UNSEEN:
                self._make_room(len(content))
                self._unseen = 0
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=os.path.dirname(path), suffix=".tmp", delete=False
            ) as f:
                try:
                    f.write(content)
                    f.flush()
                    os.replace(f.name, path)
                except OSError:
                    os.remove(f.name)
                    raise
        except OSError as e:
            self._is_broken = True
            logger.warning(
                f"No copies of images are kept: cannot write to {self._folder} ({e.strerror})"
            )

    def _path(self, address: str) -> str:
        name = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()
        return os.path.join(self._folder, name[:2], name)

    def _make_room(self, needed: int) -> None:
        files, size = self._list()
        if size + needed <= self._limit * _FULL:
            return
        for _, file_size, path in sorted(files):
            if size + needed <= self._limit * _AFTER:
                break
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                os.remove(path)
            size -= file_size

    def _list(self) -> Tuple[List[Tuple[float, int, str]], int]:
        """Time of the last use, size and path of all files, and the size of all together."""
        files, now = [], time.time()
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(path)
                    if name.endswith(".tmp") and stat.st_mtime < now - _ABANDONED:
                        os.remove(path)
                        continue
                    files.append((stat.st_mtime, stat.st_size, path))
        return files, sum(size for _, size, _ in files)


_caches = {}
