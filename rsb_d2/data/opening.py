"""The one place where image files are opened, wherever they are.

Detectron2's ``PathManager`` opens files of this machine. :data:`rsb_d2.extensions.STORAGES` adds
others, such as tar files and addresses.
"""

import os
from typing import TYPE_CHECKING, BinaryIO, List, Set

from ..extensions import STORAGES
from ..files import path_manager

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class StorageError(OSError):
    """A file of a storage that cannot be read; the text is the reason."""


class Storage:
    """Images in files and folders that ``PathManager`` opens; subclasses add other places."""

    def configure(self, cfg: "CfgNode") -> None:
        """Take settings from a config; put those for workers into :data:`.workers.SETTINGS`."""

    def holds(self, path: str) -> bool:
        """Return whether a path, of a file or an image folder, belongs to this storage."""
        return True

    def open(self, path: str, *, fresh: bool = False) -> BinaryIO:
        """Open a file to read bytes from, at any place; see :func:`open_file`."""
        return path_manager(path).open(path, "rb")

    def is_stale(self, error: Exception) -> bool:
        """Return whether reading a file again with ``fresh`` can help after an error."""
        return False

    def is_folder(self, path: str) -> bool:
        """Return whether images can be in ``path``."""
        return path_manager(path).isdir(path)

    def join(self, image_root: str, file_name: str) -> str:
        """Return the path of an image in an image folder; see :func:`image_path`."""
        return os.path.join(image_root, file_name)

    def is_file(self, path: str) -> bool:
        """Return whether a file exists."""
        return path_manager(path).isfile(path)

    def find_missing(self, file_names: List[str], image_root: str) -> List[str]:
        """Return the files that are not in an image folder; see :func:`find_missing`."""
        # One listing per folder, not one look per file, which takes minutes on a network disk.
        listings = {}
        missing = []
        for file_name in file_names:
            folder, _, name = file_name.rpartition(os.sep)
            if folder not in listings:
                listings[folder] = _list_folder(self.join(image_root, folder))
            # The second look is for file systems that do not tell A.jpg from a.jpg.
            if name not in listings[folder] and not self.is_file(self.join(image_root, file_name)):
                missing.append(file_name)
        return missing


def storage_of(path: str) -> Storage:
    """Return the storage that a path belongs to."""
    for storage in STORAGES:
        storage = storage()
        if storage.holds(path):
            return storage
    return Storage()


def configure_storages(cfg: "CfgNode") -> None:
    """Let each storage take its settings from a config."""
    for storage in STORAGES:
        storage().configure(cfg)


def open_file(path: str, *, fresh: bool = False) -> BinaryIO:
    """Open an image file for reading bytes, at any position.

    Args:
        path (str): a local file, anything that Detectron2's ``PathManager`` opens, or a path of
            one of the installed storages, such as ``images.tar!/a.jpg``.
        fresh (bool): do not use a cached copy, because it was unusable.

    Raises:
        OSError: if it cannot be opened.
        UserError: if the archive that it is in cannot be used.
    """
    return storage_of(path).open(path, fresh=fresh)


def image_path(image_root: str, file_name: str) -> str:
    """Return the path of an image in an image folder, for :func:`open_file`.

    ``file_name`` is the name of the file as in an annotation file: on a web server, too,
    ``a%20b.jpg`` has a ``%`` in its name.
    """
    return storage_of(image_root).join(image_root, file_name)


def is_image_folder(path: str) -> bool:
    """Return whether a path is an image folder, or its counterpart in a storage."""
    return storage_of(path).is_folder(path)


def find_missing(file_names: List[str], image_root: str) -> List[str]:
    """Return the files, in their order, that are not in an image folder.

    Raises:
        NotImplementedError: if the folder cannot be listed, as that of an ``https://`` address.
    """
    return storage_of(image_root).find_missing(file_names, image_root)


def _list_folder(folder: str) -> Set[str]:
    try:
        return set(path_manager(folder).ls(folder))
    except (OSError, ValueError):  # the latter for a name that no file can have
        return set()
