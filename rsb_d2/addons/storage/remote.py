"""Files beyond this machine: ``https://``, or a bucket through a handler of Detectron2's
``PathManager``, read with retries, and with a copy on the disk.
"""

import http.client
import logging
import random
import time
import urllib.error
import urllib.request
from typing import Callable

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler

from ...data.opening import StorageError
from ...files import escape_address, is_http
from .disk_cache import DiskCache

logger = logging.getLogger(__name__)

# Seconds without a byte after which a connection is given up.
TIMEOUT = 30
# Tries of one file, and the seconds before the second one; they double from try to try.
TRIES, FIRST_WAIT = 5, 0.5
# The longest that a server's Retry-After is waited for, in seconds.
LONGEST_WAIT = 30
# Where it helps to ask once more: https://www.rfc-editor.org/rfc/rfc9110#name-status-codes, and
# https://www.rfc-editor.org/rfc/rfc6585 for 429.
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)

# Not Python's own generator, whose numbers are the training's.
_random = random.SystemRandom()


class RemoteError(StorageError):
    """Its text says why a file could not be read, and after how many tries."""


def is_remote(path: str) -> bool:
    """Whether a path is none of this machine: it has a scheme, as ``https://``, but ``file://``."""
    return "://" in path and not path.startswith("file://")


def read_remote(path: str, *, fresh: bool = False) -> bytes:
    """Read a file, from its copy on the disk if there is one.

    Args:
        path (str): ``http://``, ``https://``, or anything that ``PathManager`` opens.
        fresh (bool): read it anew, as its copy turned out to be of no use.

    Returns:
        bytes

    Raises:
        FileNotFoundError: if there is no such file.
        RemoteError: if it cannot be read.
    """
    cache = DiskCache.of_settings()
    content = None if fresh else cache.get(path)
    if content is None:
        content = _with_retries(_download if _is_plain_http(path) else _open, path)
        cache.put(path, content)
    return content


def _is_plain_http(path: str) -> bool:
    """Whether no handler of the user's own is for this address."""
    handlers = getattr(PathManager, "_path_handlers", {})
    mine = [handler for prefix, handler in handlers.items() if path.startswith(prefix)]
    return is_http(path) and all(type(handler) is HTTPURLHandler for handler in mine)


def _download(url: str) -> bytes:
    request = urllib.request.Request(escape_address(url), headers={"User-Agent": "rsb_d2"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return response.read()  # IncompleteRead where the body ends early


def _open(path: str) -> bytes:
    with PathManager.open(path, "rb") as f:
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
            if e.code not in _WORTH_A_RETRY:
                raise RemoteError(reason) from None
            wait = max(wait, _asked_to_wait(e))
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
        except Exception as e:  # of a handler's own library, whose errors are of any type
            reason = f"{type(e).__name__}, {e}"
        if number < TRIES:
            time.sleep(wait)
    raise RemoteError(f"{' '.join(reason.split())} ({TRIES} tries)")


def _asked_to_wait(error: urllib.error.HTTPError) -> float:
    text = error.headers.get("Retry-After", "")
    return min(int(text), LONGEST_WAIT) if text.isdigit() else 0


def remote_exists(path: str) -> bool | None:
    """Whether a file is there, without reading it; None where nobody can say.

    Args:
        path (str): as for :func:`read_remote`.
    """
    if _is_plain_http(path):
        return None
    try:
        return PathManager.isfile(path)
    except (NotImplementedError, OSError):
        return None
