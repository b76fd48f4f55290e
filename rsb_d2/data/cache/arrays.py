"""Arrays in one file, which processes map into their memory and share: a safetensors file.

The arrays are written in a stream, since they may be larger than the memory: the first of them,
``"records"``, piece by piece, the others and the header behind it. The library of the format reads
the file, and refuses one that is cut short; checksums find what has changed in the arrays. That of
``"records"`` would take as long as reading it all, so whoever packs records checks them one by one.
"""

import json
import os
import struct
import zlib
from typing import Any, Callable, Dict, Iterable, NamedTuple, Tuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ...files import whole_file

STREAM = "records"

# The index of a safetensors file comes first, but is known last: so much room is left for it.
_INDEX_SIZE = 4096
_HEADER = "header"
_KIND = "rsb_d2 arrays, version 1"
_DTYPES = {"uint8": "U8", "int32": "I32", "int64": "I64", "float64": "F64"}


class Arrays(NamedTuple):
    """What such a file holds.

    Args:
        header (dict): of JSON's types.
        arrays (dict[str, ndarray]): by name; those of a file are read-only and in no process's
            own memory until they are looked at.
        path (str): of the file; "" for arrays in memory.
    """

    header: Dict[str, Any]
    arrays: Dict[str, np.ndarray]
    path: str = ""


class UnusableFile(Exception):
    """Its text says what is wrong with the file, to follow its name."""


def write_arrays(
    path: str, stream: Iterable[bytes], finish: Callable[[], Tuple[Dict, Dict]]
) -> None:
    """Write a file, whole or not at all.

    Args:
        path (str): a local file; its folder must exist.
        stream (iterable of bytes): the array ``"records"``, of bytes.
        finish (callable): called when the stream has ended; returns the header, and the other
            arrays by name, of the types uint8, int32, int64 or float64.

    Raises:
        UserError: if it cannot be written.
    """
    index, position = {}, 0

    def add(name: str, dtype: str, shape: tuple, size: int) -> None:
        nonlocal position
        offsets = [position, position + size]
        index[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": offsets}
        position += size

    with whole_file(path) as f:
        f.seek(_INDEX_SIZE)
        size = sum(f.write(piece) for piece in stream)
        size += f.write(bytes(-size % 8))  # what comes behind it is of eight bytes each
        add(STREAM, "uint8", (size,), size)
        header, arrays = finish()
        checksums = {name: zlib.crc32(np.ascontiguousarray(a)) for name, a in arrays.items()}
        text = json.dumps({"header": header, "checksums": checksums}).encode()
        text = np.frombuffer(text + b" " * (-len(text) % 8), dtype=np.uint8)
        for name, array in sorted({**arrays, _HEADER: text}.items(), key=_largest_items_first):
            add(name, array.dtype.name, array.shape, array.nbytes)
            f.write(np.ascontiguousarray(array))
        index["__metadata__"] = {"kind": _KIND, "header": str(zlib.crc32(text))}
        text = json.dumps(index).encode()
        f.seek(0)
        f.write(struct.pack("<Q", _INDEX_SIZE - 8) + text.ljust(_INDEX_SIZE - 8))


def _largest_items_first(entry: Tuple[str, np.ndarray]) -> int:
    return -entry[1].itemsize  # so that all of them are aligned


def read_arrays(path: str) -> Arrays:
    """Map a file of :func:`write_arrays`.

    Args:
        path (str): a local file.

    Returns:
        Arrays

    Raises:
        FileNotFoundError: if it is not there.
        UnusableFile: if it cannot be read, is damaged, or is none of this version.
    """
    try:
        size = os.stat(path).st_size
        with safe_open(path, "pt") as f:
            kind = (f.metadata() or {}).get("kind")
            if kind != _KIND:
                raise UnusableFile("is of another program or version")
            arrays = {name: f.get_tensor(name).numpy() for name in f.keys()}
            checksum = int(f.metadata()["header"])
        text = arrays.pop(_HEADER)
        if zlib.crc32(text) != checksum:
            raise UnusableFile("is damaged")
        content = json.loads(text.tobytes())
        for name, expected in content["checksums"].items():
            if zlib.crc32(arrays[name]) != expected:
                raise UnusableFile("is damaged")
    except FileNotFoundError:
        raise
    except OSError as e:
        raise UnusableFile(f"cannot be read ({e.strerror or e})") from None
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        # Of whatever is no such file; torch raises the last where a file is cut short.
        raise UnusableFile("is damaged" if size else "is empty") from None
    for array in arrays.values():
        array.flags.writeable = False
    return Arrays(content["header"], arrays, path)


def gather_arrays(stream: Iterable[bytes], finish: Callable[[], Tuple[Dict, Dict]]) -> Arrays:
    """The same in memory, for where no file can be written; arguments as of `write_arrays`."""
    records = np.frombuffer(b"".join(stream), dtype=np.uint8)
    header, arrays = finish()
    return Arrays(header, {**arrays, STREAM: records})
