"""Files behind ``https://`` or in a bucket, read with retries and copied to a disk cache.

A bucket is read by a handler that the user registers with Detectron2's ``PathManager``.

fsspec (2026.9) is not used for ``https://`` and the cache: its ``HTTPFileSystem`` refuses to run in
forked loader workers ("This class is not fork-safe"), does not retry, and needs aiohttp; its file
caches have no limit of their size.
"""

import contextlib
import functools
import hashlib
import http.client
import logging
import os
import random
import tempfile
import time
import urllib.error
import urllib.request
from typing import Callable, List, Tuple

from iopath.common.file_io import HTTPURLHandler, get_cache_dir

from ...data.opening import StorageError
from ...files import escape_address, is_http, path_manager

logger = logging.getLogger(__name__)

# Seconds without a byte after which a connection is closed.
TIMEOUT = 30
# Tries per file, and the seconds before the second one; they double from try to try.
TRIES, FIRST_WAIT = 5, 0.5
# Longest wait that a server's Retry-After can request, in seconds.
LONGEST_WAIT = 30
# Temporary failures: https://www.rfc-editor.org/rfc/rfc9110#name-status-codes, and
# https://www.rfc-editor.org/rfc/rfc6585 for 429.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

# Parts of the cache's limit. When the folder is filled to the first, files are removed until it is
# filled to the second, so that this does not happen for every file. Each process writes at most
# the third between two listings of the folder: forty processes stay below the limit.
_FULL, _AFTER, _UNSEEN = 0.8, 0.7, 0.005
# Seconds after which a temporary file belongs to a process that was killed.
_ABANDONED = 3600

# Not Python's own generator, whose state belongs to the training.
_random = random.SystemRandom()

_settings: Tuple[str | None, float] = None, 10.0  # see set_cache


class RemoteError(StorageError):
    """A file that cannot be read; the text has the reason and the number of tries."""


def is_remote(path: str) -> bool:
    """Return whether a path has a scheme, such as ``https://``, other than ``file://``."""
    return "://" in path and not path.startswith("file://")


def read_remote(path: str, *, fresh: bool = False) -> bytes:
    """Read a file, from its copy in the cache if there is one.

    Args:
        path (str): ``http://``, ``https://``, or anything that ``PathManager`` opens.
        fresh (bool): do not use the cached copy, which turned out to be damaged.

    Raises:
        FileNotFoundError: if there is no such file.
        RemoteError: if it cannot be read.
    """
    folder, gigabytes = _settings
    if folder is None:
        folder = os.path.join(get_cache_dir(), "rsb_d2", "images")
    cache = _disk_cache(folder, int(gigabytes * 1e9), os.getpid())
    content = None if fresh else cache.get(path)
    if content is None:
        content = _with_retries(_download if _is_plain_http(path) else _open, path)
        cache.put(path, content)
    return content


def remote_exists(path: str) -> bool | None:
    """Return whether a file exists, without reading it, or None if that is unknown.

    Args:
        path (str): as for :func:`read_remote`.
    """
    if _is_plain_http(path):
        return None
    try:
        return path_manager(path).isfile(path)
    except (NotImplementedError, OSError):
        return None


def _is_plain_http(path: str) -> bool:
    """Return whether the user has registered no handler for this address."""
    if not is_http(path):
        return False
    handlers = getattr(path_manager(path), "_path_handlers", {})
    matching = [handler for prefix, handler in handlers.items() if path.startswith(prefix)]
    return all(type(handler) is HTTPURLHandler for handler in matching)


def _download(url: str) -> bytes:
    request = urllib.request.Request(escape_address(url), headers={"User-Agent": "rsb_d2"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return response.read()  # raises IncompleteRead if the body ends early


def _open(path: str) -> bytes:
    with path_manager(path).open(path, "rb") as f:
        return f.read()


def _with_retries(read: Callable[[str], bytes], path: str) -> bytes:
    for number in range(1, TRIES + 1):
        wait = FIRST_WAIT * 2 ** (number - 1) * _random.uniform(0.75, 1.25)
        try:
            content = read(path)
            if content:
                return content
            reason = "it is empty"
        except urllib.error.HTTPError as e:
            if e.code in (404, 410):
                raise FileNotFoundError(path) from None
            reason = f"HTTP status {e.code}"
            if e.code not in _TEMPORARY:
                raise RemoteError(reason) from None
            requested = e.headers.get("Retry-After", "")
            if requested.isdigit():
                wait = max(wait, min(int(requested), LONGEST_WAIT))
        except FileNotFoundError:
            raise
        except http.client.IncompleteRead as e:
            reason = f"the connection ended after {len(e.partial)} bytes"
        except TimeoutError:
            reason = f"no answer in {TIMEOUT} seconds"
        except urllib.error.URLError as e:
            reason = str(getattr(e.reason, "strerror", None) or e.reason)
        except (OSError, http.client.HTTPException) as e:
            reason = str(getattr(e, "strerror", None) or e or type(e).__name__)
        except Exception as e:  # a user's handler can raise errors of any type
            reason = f"{type(e).__name__}, {e}"
        if number < TRIES:
            time.sleep(wait)
    raise RemoteError(f"{' '.join(reason.split())} ({TRIES} tries)")


# ---- the disk cache ----


def set_cache(folder: str | None, gigabytes: float) -> None:
    """Set the disk cache of this process.

    Args:
        folder (str or None): "" for no cache, None for the default folder.
        gigabytes (float): maximum size in 10^9 bytes.
    """
    global _settings
    _settings = folder, float(gigabytes)


class DiskCache:
    """Copies of files by address, shared by all processes that use the same folder.

    There are no locks: a file appears complete, by renaming, and another process may remove it at
    any time. The least recently used files are removed first.

    Args:
        folder (str): created when the first file is written; "" for no cache.
        limit (int): maximum number of bytes of all files.
    """

    def __init__(self, folder: str, limit: int):
        self._folder = folder if limit > 0 else ""
        self._limit = limit
        self._unseen = limit  # list the folder before the first file is written
        self._is_broken = False

    def get(self, address: str) -> bytes | None:
        """Return the contents that are stored for an address, or None."""
        if not self._folder:
            return None
        path = self._path(address)
        try:
            with open(path, "rb") as f:
                content = f.read()
            with contextlib.suppress(OSError):
                os.utime(path)  # the time of last use; some file systems do not record it
            return content
        except OSError:
            return None

    def put(self, address: str, content: bytes) -> None:
        """Store the contents of an address if they fit."""
        if not self._folder or self._is_broken or len(content) > self._limit * _AFTER:
            return
        path = self._path(address)
        try:
            self._unseen += len(content)
            if self._unseen > self._limit * _UNSEEN:
                self._make_room(len(content))
                self._unseen = 0
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as f:
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
        files = self._list()
        size = needed + sum(file_size for _, file_size, _ in files)
        if size <= self._limit * _FULL:
            return
        for _, file_size, path in sorted(files):
            if size <= self._limit * _AFTER:
                break
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                os.remove(path)
            size -= file_size

    def _list(self) -> List[Tuple[float, int, str]]:
        """Return the time of last use, the size and the path of each file."""
        files = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(path)
                    if name.endswith(".tmp") and stat.st_mtime < time.time() - _ABANDONED:
                        os.remove(path)
                    else:
                        files.append((stat.st_mtime, stat.st_size, path))
        return files


@functools.cache
def _disk_cache(folder: str, limit: int, process_id: int) -> DiskCache:
    # A forked process lists the folder itself.
    return DiskCache(folder, limit)
