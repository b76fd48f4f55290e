"""A COCO-format file, read in chunks: a file of gigabytes is never in memory as Python's objects.

msgspec reads it, several times as fast as ``json`` and record by record. What it refuses is read
with ``json``, which takes ``NaN`` and says where a mistake is.
"""

import json
import mmap
import os
from typing import Any, Dict, Iterator, List

import msgspec
from detectron2.utils.file_io import PathManager

from ...errors import UserError

CHUNK = 2_000  # records at a time


class AnnotationFile:
    """The content of one file, an object of ``images``, ``annotations``, ``categories``.

    Args:
        path (str): anything that Detectron2's ``PathManager`` opens.

    Raises:
        UserError: if it cannot be read, or is no JSON object; the message does not name it.
    """

    def __init__(self, path: str):
        self._path = path
        self._content: Dict[str, Any] | None = None  # read with json
        try:
            self._buffer = _map(path)
            self._raw = msgspec.json.decode(self._buffer, type=Dict[str, msgspec.Raw])
            self._lists: Dict[str, List[msgspec.Raw]] = {}
            for key in self._raw.keys() - {"images", "annotations"}:
                msgspec.json.decode(self._raw[key])  # whether it is JSON down to its last letter
        except OSError as e:
            raise UserError(f"cannot be read: {e}") from None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._read_with_json()

    def keys(self) -> List[str]:
        """The keys at the top, in their order."""
        return list(self._raw if self._content is None else self._content)

    def read(self, key: str) -> Any:
        """What is at a key, as a whole."""
        if self._content is None:
            try:
                return msgspec.json.decode(self._raw[key])
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._read_with_json()
        return self._content[key]

    def count(self, key: str) -> int:
        """How many records a key has.

        Raises:
            UserError: if the key is missing, or there is no list.
        """
        if key not in self.keys():
            raise UserError(f"is not in COCO's format: there is no key '{key}'")
        return len(self._list(key))

    def records(self, key: str) -> List[Dict[str, Any]]:
        """All records of a key.

        Raises:
            UserError: if the key is missing, or there is no list of objects.
        """
        self.count(key)
        return [record for chunk in self.chunks(key) for record in chunk]

    def chunks(self, key: str) -> Iterator[List[Dict[str, Any]]]:
        """The records of a key, some thousands at a time; the lists may be changed.

        Raises:
            UserError: as :meth:`records`.
        """
        for start in range(0, self.count(key), CHUNK):
            yield self._chunk(key, start)

    def texts(self, key: str, first: int, last: int) -> Iterator[bytes]:
        """The JSON of records of a key as it is in the file, and as it is read."""
        for record in self._list(key)[first:last]:
            yield bytes(record) if isinstance(record, msgspec.Raw) else _with_json(record)

    def text(self, key: str) -> bytes:
        """The JSON of what is at a key."""
        return bytes(self._raw[key]) if self._content is None else _with_json(self._content[key])

    def _list(self, key: str) -> List[Any]:
        if self._content is None and key not in self._lists:
            try:
                self._lists[key] = msgspec.json.decode(self._raw[key], type=List[msgspec.Raw])
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._read_with_json()
        found = self._lists[key] if self._content is None else self._content[key]
        if not isinstance(found, list):
            raise UserError(f"is not in COCO's format: '{key}' must be a list of objects")
        return found

    def _chunk(self, key: str, start: int) -> List[Dict[str, Any]]:
        records = self._list(key)[start : start + CHUNK]
        if self._content is None:
            try:
                decode = msgspec.json.Decoder().decode
                records = [decode(record) for record in records]
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._read_with_json()
                records = self._list(key)[start : start + CHUNK]
        if not all(isinstance(record, dict) for record in records):
            raise UserError(f"is not in COCO's format: '{key}' must be a list of objects")
        return records

    def _read_with_json(self) -> None:
        try:
            with PathManager.open(self._path, "rb") as f:
                content = json.loads(f.read().decode("utf-8"))
        except OSError as e:
            raise UserError(f"cannot be read: {e}") from None
        except UnicodeDecodeError:
            raise UserError("is not UTF-8 text; save it as JSON in UTF-8") from None
        except ValueError as e:  # JSONDecodeError, and of a number of more digits than Python takes
            raise UserError(f"is not valid JSON: {e}") from None
        except RecursionError:
            raise UserError("is not in COCO's format: its lists are nested too deeply") from None
        if not isinstance(content, dict):
            raise UserError(
                "is not in COCO's format: at the top there must be an object with the keys "
                f"'images', 'annotations' and 'categories', not a {type(content).__name__}"
            )
        self._raw, self._lists = {}, {}
        self._content = content

    def to_json(self, value: Any) -> bytes:
        """JSON text of a value of this file, with ``NaN`` where there is one."""
        # msgspec writes null for it, and has read the file only if there is none.
        return msgspec.json.encode(value) if self._content is None else _with_json(value)


def _with_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _map(path: str) -> Any:
    with PathManager.open(path, "rb") as f:
        try:
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # no file of the system, or an empty one
            if os.path.isdir(path):
                raise
            return f.read()
