"""Annotation files in the cache folder: made once, by one process, and used while they fit.

A file of the cache is named by the annotation file, the image folder and the check. It is used as
long as the annotation file has the size, the times and the content that it had, and made anew
otherwise, or when it is damaged.
"""

import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import tempfile
import time
import uuid
from dataclasses import dataclass
from typing import IO, Any, Dict, List

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock, get_cache_dir
from portalocker.exceptions import LockException

from ...errors import UserError
from ...files import whole_file
from ...memory import garbage_collection_paused
from ..coco_check import check_image_files
from ..opening import storage_of
from .arrays import (
    Arrays,
    UnusableFile,
    gather_arrays,
    read_arrays,
    write_arrays,
)
from .checked import CheckedCocoJson, check_coco_json
from .fingerprint import fingerprint, is_unchanged
from .records import PackedRecords
from .stock import read_coco_json

logger = logging.getLogger(__name__)

# What is done to a file when it is read.
CHECKED, CHECKED_WITH_MASKS, AS_STOCK = "checked", "checked with masks", "as Detectron2 reads it"

# Raise it when the content of the files changes, by the rules of the check too.
_VERSION = 3

# DATASETS.CACHE for no cache.
OFF = "off"


def cache_folder(setting: str) -> str:
    """The folder that ``DATASETS.CACHE`` stands for.

    Args:
        setting (str): a folder; "" for the one of ``$FVCORE_CACHE``; ``"off"``.

    Returns:
        str: "" for none.
    """
    if setting == OFF:
        return ""
    if setting:
        return os.path.abspath(os.path.expanduser(setting))
    return os.path.join(get_cache_dir(), "rsb_d2", "datasets")


@dataclass(frozen=True)
class AnnotationSource:
    """An annotation file, and how it is to be read.

    Args:
        json_file (str): COCO-format; anything that Detectron2's ``PathManager`` opens.
        image_root (str): image folder.
        kind (str): ``CHECKED``, ``CHECKED_WITH_MASKS`` or ``AS_STOCK``.
        folder (str): of the cache; "" for none.
    """

    json_file: str
    image_root: str
    kind: str
    folder: str

    def open(self) -> PackedRecords:
        """Read the annotation file, or what the cache has of it.

        Returns:
            PackedRecords: whose ``header`` has the keys ``"checked"``, the fields of
            ``CheckedCocoJson`` or ``StockCocoJson``, and ``"messages"``, levels and texts to log.

        Raises:
            UserError: if the annotation file cannot be used; the message does not name it.
            NotPlain: for ``AS_STOCK``, if it is not of the plain format.
        """
        return PackedRecords(self._open(), self.image_root, self.make_anew)

    def make_anew(self, damaged: Dict[str, Any]) -> Arrays:
        """Make the file of the cache again, as something in it is damaged.

        Args:
            damaged (dict): its header.

        Returns:
            Arrays: of the new one, or of what another process has made meanwhile.
        """
        return self._open(damaged["made"])

    def _open(self, damaged: str = "") -> Arrays:
        if not self.folder:
            return self._gather()
        path = self._path()
        found = self._reuse(path, damaged, say_why_not=False)
        if found is not None:
            return found
        try:
            os.makedirs(self.folder, exist_ok=True)
            lock = file_lock(path)
            lock.acquire()
        except (OSError, LockException) as e:
            return self._go_without(e)
        try:
            # Another process may have made it while this one waited.
            found = self._reuse(path, damaged, say_why_not=True)
            return self._make(path) if found is None else found
        finally:
            lock.release()

    def _reuse(self, path: str, damaged: str, *, say_why_not: bool) -> Arrays | None:
        """The file of the cache, if it is one and fits."""
        try:
            arrays = read_arrays(path)
            self._check_fits(arrays.header)
            if arrays.header["made"] == damaged:
                raise UnusableFile("is damaged")
        except OSError:  # of the cache or of the annotation file, which then says so itself
            return None
        except UnusableFile as e:
            if say_why_not:
                logger.warning(f"{path} {e}: it is made anew")
            return None
        if self.kind != AS_STOCK:
            self._check_image_files(path, arrays)
        return arrays

    def _check_fits(self, header: Dict[str, Any]) -> None:
        if header.get("source") != self._identity():
            raise UnusableFile("is of other files or of another version")
        if not is_unchanged(PathManager.get_local_path(self.json_file), header["file"]):
            raise UnusableFile(f"was made before {self.json_file} changed")
        copy = header["checked"].get("json_file", self.json_file)
        if copy != self.json_file and not os.path.isfile(copy):
            raise UnusableFile(f"lacks the corrected copy {copy}")

    def _check_image_files(self, path: str, arrays: Arrays) -> None:
        """Look for the images again where one of their folders has changed since the last time."""
        names = PackedRecords(arrays, self.image_root).file_names
        with contextlib.suppress(OSError, ValueError):
            with open(_folders_file(path)) as f:
                before = json.load(f)
            if before and before == {folder: _modified(folder) for folder in before}:
                return
            if before == {} and not _folders(names(), self.image_root):
                return
        found = _folders(names(), self.image_root)
        check_image_files(names(), self.image_root)
        _remember_folders(path, found)

    def _make(self, path: str) -> Arrays:
        for leftover in glob.glob(f"{glob.escape(path)}.*.tmp"):
            os.remove(leftover)
        start = time.perf_counter()
        try:
            with tempfile.TemporaryFile(dir=self.folder) as spool:
                header, packer = self._read(spool)
                found = _folders(packer.file_names(), self.image_root)
                write_arrays(path, packer.stream(), lambda: (header, packer.columns()))
            _remember_folders(path, found)
            seconds = time.perf_counter() - start
            logger.log(
                logging.INFO if seconds > 1 else logging.DEBUG,  # as Detectron2 says it
                f"Reading {self.json_file} took {seconds:.2f} s; later starts take it from {path}",
            )
            return read_arrays(path)
        except (OSError, UnusableFile) as e:
            return self._go_without(e)
        except UserError as e:
            if not isinstance(e.__cause__, OSError):
                raise
            return self._go_without(e.__cause__)

    def _go_without(self, error: Exception) -> Arrays:
        reason = getattr(error, "strerror", None) or str(error)
        logger.warning(
            f"The cache folder {self.folder} cannot be used ({reason}): each process reads "
            f"{self.json_file} for itself, at every start; name another folder in DATASETS.CACHE"
        )
        return self._gather()

    def _gather(self) -> Arrays:
        header, packer = self._read(io.BytesIO())
        return gather_arrays(packer.stream(), lambda: (header, packer.columns()))

    def _read(self, spool: IO[bytes]) -> tuple:
        try:
            file = fingerprint(PathManager.get_local_path(self.json_file), whole=True)
        except FileNotFoundError:
            raise UserError("there is no such annotation file") from None
        except OSError as e:
            raise UserError(f"cannot be read: {e}") from None
        with garbage_collection_paused():
            if self.kind == AS_STOCK:
                checked, messages, packer = read_coco_json(self.json_file, spool)
            else:
                with_masks = self.kind == CHECKED_WITH_MASKS
                checked, messages, packer = check_coco_json(
                    self.json_file, self.image_root, with_masks=with_masks, spool=spool
                )
        header = {
            "source": self._identity(),
            "made": uuid.uuid4().hex,
            "file": file,
            "checked": checked._asdict(),
            "messages": messages,
        }
        return header, packer

    def _identity(self) -> List[Any]:
        return [_VERSION, self.json_file, self.image_root, self.kind]

    def _path(self) -> str:
        digest = hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()
        stem = os.path.splitext(os.path.basename(self.json_file))[0]
        return os.path.join(self.folder, f"{stem[:40]}-{digest[:16]}.safetensors")


# ---- the image folders, and when they were last written to ----


def _folders(names: List[str], image_root: str) -> Dict[str, int]:
    folders = storage_of(image_root).watched_paths(names, image_root)
    return {folder: _modified(folder) for folder in sorted(folders)}


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _folders_file(path: str) -> str:
    return f"{path}.folders.json"


def _remember_folders(path: str, folders: Dict[str, int]) -> None:
    with contextlib.suppress(UserError), whole_file(_folders_file(path)) as f:
        f.write(json.dumps(folders).encode())


def check_coco_json_alone(json_file: str, image_root: str) -> CheckedCocoJson:
    """Check a COCO-format file as its registration does, keeping nothing of it.

    Args:
        json_file (str): annotation file.
        image_root (str): image folder.

    Returns:
        CheckedCocoJson: what to read, and what is in it.

    Raises:
        UserError: as :func:`rsb_d2.data.cache.checked.check_coco_json`.
    """
    with tempfile.TemporaryFile() as spool:
        checked, messages, _ = check_coco_json(json_file, image_root, with_masks=False, spool=spool)
    for level, message in messages:
        logger.log(level, message)
    return checked
