"""Files that are written completely or not at all, and the files in a folder."""

import os
from contextlib import contextmanager, suppress
from typing import IO, Iterator, List, Set, Tuple

from .errors import UserError


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file that takes its place when the block ends, and is gone if the block fails.

    Args:
        path (str): a local file; its folder must exist.

    Yields:
        file: to write bytes to.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or ".")
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        if os.path.lexists(temporary):
            os.remove(temporary)


def _sync_folder(folder: str) -> None:
    """Have the new name outlast a power cut, too, where the system lets one ask for that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def files_below(folder: str, without: str = "") -> Tuple[List[str], List[str]]:
    """List the files in a folder and in the folders below it; linked folders are followed.

    Args:
        folder (str): a local folder.
        without (str): a folder that is not listed, such as the one of the outputs; ``""`` for none.

    Returns:
        list[str], list[str]: the paths of the files, each once, sorted; and the paths of what is
        passed over, folders with a slash at their end: hidden files and folders, folders that
        cannot be listed, links to folders that are listed in another place (so that a link to a
        folder above it ends), and what is not a regular file.
    """
    skipped = os.path.realpath(without) if without else ""
    listed: Set[str] = set()
    files: List[str] = []
    passed_over: List[str] = []
    starts = [folder]
    for start in starts:  # grows: what a link leads to is listed after the folder's own places
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
                # A link that leads nowhere is a file that cannot be read, which its reader names.
                is_file = os.path.isfile(path) or os.path.islink(path)
                (files if is_file and not name.startswith(".") else passed_over).append(path)
    return sorted(files), sorted(passed_over)
