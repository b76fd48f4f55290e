"""Files that are written whole or not at all."""

import os
from contextlib import contextmanager, suppress
from typing import IO, Iterator

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
