"""Results as they come: a file of JSON lines for each process, one line an image.

A line is written when the image's picture is there, and counts when it is whole: what a killed
process leaves of its last line is passed over, and its image done again.
"""

import glob
import json
import os
import time
from typing import Any, Dict, List, Tuple

import numpy as np

from ....errors import UserError

# Seconds after which lines outlast a power cut; a killed process loses none that it has written.
_SYNC_PERIOD = 5.0


def _path(folder: str, rank: int | str) -> str:
    return os.path.join(folder, f"results-{rank}.jsonl")


class Journal:
    """The lines of one process, appended.

    Args:
        folder (str): of all processes; it must exist.
        rank (int): of this one.

    Raises:
        UserError: if the file cannot be written.
    """

    def __init__(self, folder: str, rank: int):
        self._name = _path(folder, rank)
        self._synced = time.monotonic()
        try:
            self._file = open(self._name, "a+b")
            if self._file.tell():  # at the end of what is there
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
                    self._file.write(b"\n")
        except OSError as e:
            raise self._error(e) from e

    def add(self, line: bytes) -> None:
        """Append a line, which ends with a newline."""
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_PERIOD:
                self._sync()
        except OSError as e:
            raise self._error(e) from e

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _error(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self._name}: {error.strerror or error}")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._sync()
            self._file.close()
        except OSError as e:
            raise self._error(e) from e


class Lines:
    """The lines of all processes: where that of each image is.

    Memory does not grow with what is in them, but for a few bytes an image.

    Args:
        folder (str): of the journals; may be missing.
        num_images (int): of the run.

    Attributes:
        skipped (list[tuple[str, str]]): path of each image that could not be used, and why.

    Raises:
        UserError: if one of the files cannot be read.
    """

    def __init__(self, folder: str, num_images: int):
        self.skipped: List[Tuple[str, str]] = []
        self._files: List[Any] = []
        self._file_of = np.full(num_images, -1, dtype=np.int32)
        self._offsets = np.zeros(num_images, dtype=np.int64)
        for path in sorted(glob.glob(_path(glob.escape(folder), "*"))):
            try:
                self._files.append(open(path, "rb"))
                self._find(len(self._files) - 1)
            except OSError as e:
                raise UserError(f"cannot read {path}: {e.strerror or e}") from e

    def _find(self, number: int) -> None:
        offset = 0
        for line in self._files[number]:
            record = _parse(line)
            if record is not None and 0 <= record["index"] < len(self._file_of):
                self._file_of[record["index"]] = number
                self._offsets[record["index"]] = offset
                if "skipped" in record:
                    self.skipped.append((record["path"], record["skipped"]))
            offset += len(line)

    def done(self) -> bytes:
        """A byte for each image, 1 where there is a line of it."""
        return (self._file_of >= 0).astype(np.uint8).tobytes()

    def __getitem__(self, index: int) -> Dict[str, Any]:
        """The record of an image.

        Raises:
            KeyError: if there is none.
            UserError: if the file cannot be read.
        """
        if self._file_of[index] < 0:
            raise KeyError(index)
        file = self._files[self._file_of[index]]
        try:
            file.seek(self._offsets[index])
            return json.loads(file.readline())
        except OSError as e:
            raise UserError(f"cannot read {file.name}: {e.strerror or e}") from e

    def close(self) -> None:
        for file in self._files:
            file.close()


def _parse(line: bytes) -> Dict[str, Any] | None:
    """The record of a line; None of one that is not whole."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("index"), int) else None
