"""Files and folders that are written completely or not at all, listings, digests, and addresses."""

import errno
import functools
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Iterable, Iterator, List, Set, Tuple
from urllib.parse import quote

from .errors import UserError, printable

if TYPE_CHECKING:
    from iopath.common.file_io import PathManager

# Errors of a file system that takes no more data, whatever is written.
_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

# The folder, in a folder of outputs, for the outputs of earlier runs.
EARLIER = "earlier"

# Characters that RFC 3986, 3.3, allows in the path of an address as they are.
_PATH_CHARACTERS = "/:@!$&'()*+,;=~"
_HTTP = ("http://", "https://")


# ---- writing ----


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """Write a file atomically: it appears when the block ends, and not at all if the block fails.

    Other errors of the block, such as those of files that it reads, pass unchanged.

    Args:
        path (str): a local file; its folder must exist.

    Yields:
        file: to write bytes to; writing raises the :class:`UserError` below.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open_output(temporary, path) as f:
            yield f
            f.flush()
            with errors_of_writing(path):
                os.fsync(f.fileno())
        with errors_of_writing(path):
            os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or ".")
    finally:
        if os.path.lexists(temporary):
            os.remove(temporary)


@contextmanager
def errors_of_writing(path: str, key: str = "") -> Iterator[None]:
    """Turn an ``OSError`` of a block that only writes into a :class:`UserError`.

    ``key`` begins the message, such as ``"--output: "``.
    """
    try:
        yield
    except OSError as e:
        raise UserError(f"{key}cannot write {path}: {e.strerror or e}") from e


class _Output(io.FileIO):
    def __init__(self, path: str, shown: str):
        self._shown = shown
        with errors_of_writing(shown):
            super().__init__(path, "wb")

    def write(self, data: Any) -> int:
        with errors_of_writing(self._shown):
            return super().write(data)

    def close(self) -> None:
        with errors_of_writing(self._shown):
            super().close()


def open_output(path: str, shown: str = "") -> IO[bytes]:
    """Open a file to write bytes to, whose own errors are raised as :class:`UserError`.

    Errors of other files, which a block may read while it writes, pass unchanged. ``shown`` is the
    name for messages.
    """
    return io.BufferedWriter(_Output(path, shown or path))


@contextmanager
def whole_folder(folder: str, key: str = "") -> Iterator[str]:
    """Make a folder atomically: it appears when the block ends, and not at all if the block fails.

    Args:
        folder (str): a path without a folder, or of an empty one; parents are created.
        key (str): as of :func:`errors_of_writing`.

    Yields:
        str: a folder to write to.

    Raises:
        UserError: if it cannot be written, or a file that the block reads cannot be read.
    """
    path = os.path.abspath(folder)
    with errors_of_writing(folder, key):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # In the same folder, so that it is renamed and not copied.
        aside = tempfile.mkdtemp(
            prefix=f".{os.path.basename(path)[:50]}-", dir=os.path.dirname(path)
        )
    new = os.path.join(aside, "new")
    try:
        with errors_of_writing(folder, key):
            os.mkdir(new)
        try:
            yield new
        except OSError as e:
            raise error_of_block(e, new, folder, key) from e
        with errors_of_writing(folder, key):
            os.rename(new, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def error_of_block(error: OSError, temporary: str, folder: str, key: str = "") -> Exception:
    """Return the error for a block that reads files and writes into the folder ``temporary``.

    It names the file that cannot be read, or ``folder`` if that cannot be written.
    """
    reason = error.strerror or str(error)
    name = error.filename
    if error.errno in _NO_MORE or str(name).startswith(temporary):
        return UserError(f"{key}cannot write {folder}: {reason}")
    if name is None:
        return UserError(f"{key}{folder} was not written: {reason}")
    return UserError(f"cannot read {printable(str(name))}: {reason}")


def find_disk_error(error: BaseException | None) -> OSError | None:
    """Find the error, or its cause, that means that a local file cannot be written.

    Errors of a network are ``OSError`` as well; they have other numbers, or name no file.
    """
    while error is not None:
        is_of_file = isinstance(error, (PermissionError, NotADirectoryError, FileExistsError))
        if isinstance(error, OSError) and error.errno in _NO_MORE or is_of_file and error.filename:
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: str) -> None:
    """Make a new name survive a power cut, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---- existing files ----


def move_aside(folder: str, names: Iterable[str]) -> str:
    """Move files of a folder into its next subfolder ``earlier/1``, ``earlier/2`` and so on.

    Returns:
        str: the folder that contains them now.
    """
    with errors_of_writing(folder):
        kept = os.path.join(folder, EARLIER)
        os.makedirs(kept, exist_ok=True)
        numbers = [int(name) for name in os.listdir(kept) if name.isdecimal()]
        target = os.path.join(kept, str(max(numbers, default=0) + 1))
        os.mkdir(target)
        for name in names:
            shutil.move(os.path.join(folder, name), target)
    return target


# ---- listing ----


def files_below(folder: str, without: str = "") -> Tuple[List[str], List[str]]:
    """List the files in a folder and in the folders below it; linked folders are followed.

    Args:
        folder (str): a local folder.
        without (str): a folder that is not listed, such as the one of the outputs; ``""`` for none.

    Returns:
        list[str], list[str]: the paths of the files, each once, sorted; and the skipped paths,
        folders with a slash at the end: hidden files and folders, folders that cannot be listed,
        links to folders that are listed elsewhere (so that a link to a parent ends), and anything
        that is not a regular file.
    """
    skipped = os.path.realpath(without) if without else ""
    listed: Set[str] = set()
    files: List[str] = []
    passed_over: List[str] = []
    starts = [folder]
    for start in starts:  # grows: linked folders are listed after the folder itself
        if os.path.realpath(start) in listed:
            passed_over.append(f"{start}/")
            continue
        for parent, folders, names in os.walk(
            start, onerror=lambda error: passed_over.append(f"{error.filename}/")
        ):
            here = os.path.realpath(parent)
            listed.add(here)
            entered = []
            for name in sorted(folders):
                path = os.path.join(parent, name)
                real = os.path.realpath(path)
                is_above = os.path.commonpath([here, real]) == real
                if real == skipped:
                    continue
                if name.startswith(".") or is_above or real in listed:
                    passed_over.append(f"{path}/")
                elif os.path.islink(path):
                    starts.append(path)
                else:
                    entered.append(name)
            folders[:] = entered
            for name in names:
                path = os.path.join(parent, name)
                # A broken link counts as a file, which its reader reports.
                is_file = os.path.isfile(path) or os.path.islink(path)
                (files if is_file and not name.startswith(".") else passed_over).append(path)
    return sorted(files), sorted(passed_over)


def listing_error(path: str) -> str:
    """Why a folder, such as one that :func:`files_below` skips, cannot be listed; or ""."""
    try:
        os.scandir(path).close()
    except OSError as e:
        return e.strerror or str(e)
    return ""


def sha256_of(path: str) -> str:
    """Return the sha256 of a file in hex digits; an unchanged file is read once in a process."""
    stat = os.stat(path)
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ---- addresses ----


def path_manager(path: str) -> "PathManager":
    """Return the object that opens, lists and finds a path: Detectron2's ``PathManager``.

    For a path of this machine it is one of iopath that works the same, as long as nothing has
    imported Detectron2, which imports torch.
    """
    if "://" in path or "detectron2" in sys.modules:
        from detectron2.utils.file_io import PathManager

        return PathManager
    return _local_paths()


@functools.cache
def _local_paths() -> "PathManager":
    from iopath.common.file_io import PathManager

    return PathManager()


def is_http(path: str) -> bool:
    """Whether a path is the address of a file on a web server."""
    return path.startswith(_HTTP)


def escape_address(path: str) -> str:
    """An address as it is requested from a web server; any other path as it is.

    ``?`` begins the parameters and ``%20`` is a space, as in a browser. ``#`` belongs to the name
    of a file, as do a ``%`` without two digits after it, spaces and letters beyond ASCII.
    """
    if not is_http(path):
        return path
    scheme, _, rest = path.partition("://")
    host, slash, rest = rest.partition("/")
    with suppress(UnicodeError):
        host = host.encode("idna").decode()
    rest = re.sub("%(?![0-9A-Fa-f]{2})", "%25", rest)
    return f"{scheme}://{host}{slash}{_quoted(rest, _PATH_CHARACTERS + '?%[]')}"


def absolute(path: str) -> str:
    """Return a path of this machine from its root, or an address as it is requested."""
    if "://" in path:
        return escape_address(path)
    return os.path.abspath(os.path.expanduser(path))


def join_address(root: str, name: str) -> str:
    """The address of a file in a folder on a web server; a ``%`` in ``name`` is a ``%``."""
    return f"{root.rstrip('/')}/{_quoted(name, _PATH_CHARACTERS)}"


def _quoted(text: str, safe: str) -> str:
    return quote(text, safe=safe, errors="surrogateescape")
