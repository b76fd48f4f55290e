"""Reading checkpoint files without running code in them, and writing them.

``torch.load(weights_only=True)`` and safetensors read their formats. Our own unpickler reads only
the ``.pkl`` files of Detectron2's model zoo, which are pickles of NumPy arrays, not files of torch.
"""

import contextlib
import errno
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..errors import UserError
from ..files import errors_of_writing, whole_file

StateDict = Dict[str, torch.Tensor]

# Where the programs that write checkpoints put the state dict.
_STATE_DICT_KEYS = ("model", "state_dict", "blobs")

_ZIP_START = b"PK\x03\x04"
# torch.save's format before it became a zip archive starts with this pickled number.
_LEGACY_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Protocol 2 and later; the first bytes of a container or an object in protocol 0 and 1.
_PICKLE_STARTS = (b"\x80", b"(", b"c", b"}", b"]")
# Safetensors: the header's length in 8 bytes, which is below 2^32, and the header, in JSON.
_SAFETENSORS_AT_4 = b"\0\0\0\0{"
_GIT_LFS_START = b"version https://git-lfs"


def read_checkpoint(path: str, *, map_tensors: bool = False) -> Dict[str, Any]:
    """Read a checkpoint; the kind of file is determined by its content, not by its name.

    Args:
        path (str): a local file: safetensors, of ``torch.save``, or a pickle of arrays
            and plain containers, as in Detectron2's model zoo.
        map_tensors (bool): whether the tensors may be mapped from the file, so that they take no
            memory until they are used. The caller must copy them to keep them.

    Returns:
        dict[str, Any]: under ``"model"`` the state dict, ``{name: Tensor}`` (with the
        ``_metadata`` that ``nn.Module.state_dict`` attaches, if any), and all other entries of the
        file, such as ``"iteration"``.

    Raises:
        UserError: if the file is not one of these, is damaged, holds no weights, needs a type
            that neither ``torch.load(weights_only=True)`` nor plain arrays allow (nothing of it
            has been executed then), or has tensors with values that are not finite.
    """
    content = read_file(path, map_tensors=map_tensors)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {_type_name(content)}, not a state dict")
    checkpoint = dict(content)
    weights = next((k for k in _STATE_DICT_KEYS if isinstance(checkpoint.get(k), Mapping)), None)
    if weights is None:
        checkpoint = {"model": _as_state_dict(path, content)}
    else:
        checkpoint = {"model": _as_state_dict(path, checkpoint.pop(weights)), **checkpoint}
    _check_finite(path, checkpoint)
    return checkpoint


def _check_finite(path: str, checkpoint: Mapping) -> None:
    """Check that all tensors are finite: weights, averages, and the optimizer's state."""
    bad = [(name, tensor) for name, tensor in _tensors(checkpoint) if not _is_finite(tensor)]
    if not bad:
        return
    name, tensor = bad[0]
    what = "NaN" if tensor.isnan().any() else "infinite values"
    others = f" (and {len(bad) - 1} other tensors)" if len(bad) > 1 else ""
    raise UserError(
        f"{path} has {what} in {name}{others}: its run diverged before it was written, or the "
        "file is damaged; take an earlier checkpoint"
    )


def _tensors(value: Any, name: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}[{index}]")


def _is_finite(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def read_file(path: str, *, map_tensors: bool = False) -> Any:
    """Read the content of a file with the reader for its format; see :func:`read_checkpoint`."""
    start = _first_bytes(path)
    if start.startswith(_ZIP_START):
        _check_zip(path)
        return _read_torch(path, map_tensors)
    if start.startswith(_LEGACY_TORCH_START):
        return _read_torch(path)
    if start[4:9] == _SAFETENSORS_AT_4:
        return _read_safetensors(path)
    _refuse_other_files(path, start)
    return _read_pickle(path)


def _first_bytes(path: str, count: int = 512) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read(count)
    except IsADirectoryError as e:
        raise UserError(f"{path} is a folder: name the checkpoint file in it") from e
    except FileNotFoundError as e:
        raise UserError(f"there is no file {path}") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def _refuse_other_files(path: str, start: bytes) -> None:
    if not start:
        raise UserError(f"{path} is empty (0 bytes): download or copy it again")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UserError(
            f"{path} is a web page (HTML) saved under this name, not a checkpoint: download the "
            "file itself"
        )
    if start.startswith(_GIT_LFS_START):
        raise UserError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")
    if not start.startswith(_PICKLE_STARTS):
        raise UserError(
            f"{path} is neither safetensors nor a file of torch.save nor a pickle, or its "
            "beginning is lost: download or copy it again"
        )


def _check_zip(path: str) -> None:
    """Compare the checksums that torch.save wrote, which torch.load ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as e:  # zipfile has many
        _pass_on(path, e)
        raise UserError(
            f"{path} is cut off or damaged ({_first_line(e)}): download or copy it again"
        ) from e
    if damaged:
        raise UserError(
            f"{path} is damaged (wrong checksum of {damaged}): download or copy it again"
        )


def _read_torch(path: str, map_tensors: bool = False) -> Any:
    try:
        # Given a name, as it must be for a map, torch.load would go by another ending.
        if map_tensors and path.endswith(".pth"):
            with contextlib.suppress(OSError, RuntimeError):  # e.g. a file system without maps
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with open(path, "rb") as f:
            return torch.load(f, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        refused = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(e))
        if refused:
            raise _refused(path, refused.group(1)) from e
        raise _refused(path, _first_line(e)) from e
    except Exception as e:  # damaged files make torch raise many types
        _pass_on(path, e)
        raise UserError(
            f"{path} is cut off, damaged or no file of torch.save ({_first_line(e)})"
        ) from e


def _read_safetensors(path: str) -> StateDict:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, OSError, MemoryError) as e:
        _pass_on(path, e)
        raise UserError(
            f"{path} is cut off or damaged (safetensors: {_first_line(e)}): download or copy it "
            "again"
        ) from e


def _read_pickle(path: str) -> Any:
    try:
        with open(path, "rb") as f:
            return _ArrayUnpickler(f, encoding="latin1").load()
    except _RefusedType as e:
        raise _refused(path, str(e)) from e
    except Exception as e:  # as in _read_torch
        _pass_on(path, e)
        raise UserError(
            f"{path} is cut off, damaged or no pickle ({_first_line(e) or type(e).__name__})"
        ) from e


def _pass_on(path: str, error: Exception) -> None:
    """Raise a UserError if the file is not at fault: an error of the disk, or too little memory."""
    if isinstance(error, MemoryError):
        raise UserError(f"cannot read {path}: there is too little memory for it") from error
    # EINVAL: a damaged file made the reader seek to an invalid position.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _refused(path: str, what: str) -> UserError:
    return UserError(
        f"{path} was not read: beyond tensors, arrays and plain containers it needs {what}, and "
        "reading that can run code. Have its author save the state dict alone, or as safetensors"
    )


class _RefusedType(Exception):
    """The name that an unpickler was asked to import and refuses."""


class _FromBuffer:
    """NumPy's function for arrays in pickle protocol 5.

    An object without attributes, as a pickle could set attributes of NumPy's own function.
    """

    __slots__ = ()

    def __call__(self, buffer, dtype, shape, order):
        return np.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape, order=order)


def _numpy_names() -> Dict[str, Any]:
    names = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    multiarray = np.core.multiarray if np.__version__ < "2" else np._core.multiarray
    for package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        names[f"{package}.multiarray._reconstruct"] = multiarray._reconstruct
        names[f"{package}.multiarray.scalar"] = multiarray.scalar
        names[f"{package}.numeric._frombuffer"] = _FromBuffer()
    return names


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler for NumPy arrays and plain containers, which imports nothing else."""

    _ALLOWED = {
        **_numpy_names(),
        # Bytes, in pickle protocol 2; both are immutable.
        "_codecs.encode": str.encode,
        "__builtin__.bytes": bytes,
        "collections.OrderedDict": OrderedDict,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise _RefusedType(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedType("a persistent reference, as of torch's storages")


def _as_state_dict(path: str, tensors: Mapping) -> StateDict:
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    state_dict = OrderedDict()
    for name, value in tensors.items():
        state_dict[name] = _as_tensor(path, name, value)
    if hasattr(tensors, "_metadata"):
        state_dict._metadata = tensors._metadata
    return state_dict


def _as_tensor(path: str, name: Any, value: Any) -> torch.Tensor:
    if not isinstance(name, str):
        raise UserError(f"{path} is no state dict: it has the key {name!r}")
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (np.ndarray, np.number)):
        try:
            return torch.from_numpy(np.array(value))
        except TypeError as e:
            raise UserError(f"{path}: {name} is an array of {np.asarray(value).dtype}") from e
    raise UserError(
        f"{path} is no state dict: {name} is a {_type_name(value)}, where a tensor should be"
    )


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


# ---- writing ----

# Types that torch.load(weights_only=True) reads back unchanged.
_PLAIN_TYPES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device),
)


def save_torch(path: str, content: Any) -> None:
    """``torch.save`` to a local file, completely or not at all."""
    with whole_file(path) as f, errors_of_writing(path):
        try:
            torch.save(content, f)
        except RuntimeError as e:  # torch closes its archive, which fails again
            if isinstance(e.__context__, (OSError, UserError)):
                raise e.__context__ from None
            raise


def save_weights(path: str, weights: StateDict, **entries: Any) -> None:
    """Write a state dict, in the order of the names; the bytes depend only on names and tensors.

    ``path`` ends in ``.pth`` or ``.safetensors``. With ``entries``, a ``.pth`` file has the state
    dict as its ``"model"``, next to these; safetensors has no such entries.
    """
    check_ending(path)
    # Copies, as saving a view would save all that it views.
    weights = {n: weights[n].detach().cpu().clone().contiguous() for n in sorted(weights)}
    if path.endswith(".safetensors"):
        with whole_file(path) as f:
            f.write(safetensors.torch.save(weights, metadata={"format": "pt"}))
    else:
        save_torch(path, {"model": weights, **entries} if entries else weights)


def check_ending(path: str) -> None:
    """Raise a :class:`UserError` unless ``path`` ends in ``.pth`` or ``.safetensors``."""
    if not path.endswith((".pth", ".safetensors")):
        raise UserError(f"{path}: the output's name must end in .pth or .safetensors")


def to_plain(value: Any, where: str) -> Any:
    """Copy a value into types that ``torch.load(weights_only=True)`` reads.

    NumPy's numbers become Python's, its arrays tensors, and kinds of ``dict`` a ``dict``. An
    ``OrderedDict`` of tensors is returned as it is. ``where`` names the value in a message.
    """
    if type(value) in _PLAIN_TYPES or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, OrderedDict) and all(isinstance(v, torch.Tensor) for v in value.values()):
        return value  # with its _metadata
    if isinstance(value, Mapping):
        kind = Counter if isinstance(value, Counter) else dict
        return kind({to_plain(k, where): to_plain(v, f"{where}.{k}") for k, v in value.items()})
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(to_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    raise UserError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which no checkpoint "
        "can hold: its state_dict must be of tensors, numbers, strings and containers of them"
    )
