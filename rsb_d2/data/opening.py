"""The one place where image files are opened, wherever they are."""

import io
import os
from typing import BinaryIO, List, Set

from detectron2.utils.file_io import PathManager

from ..addons.storage.remote import is_remote, read_remote, remote_exists
from ..addons.storage.tar import open_member, open_tar, split_tar_path
from ..files import is_http, join_address


def open_file(path: str, *, fresh: bool = False) -> BinaryIO:
    """Open an image file.

    Args:
        path (str): a file of this machine; ``images.tar!/a.jpg``, a member of a tar file; an
            address as ``https://…``; or anything that Detectron2's ``PathManager`` opens.
        fresh (bool): do not take the copy of a file from elsewhere, which turned out to be of no
            use.

    Returns:
        file: to read bytes from, at any place.

    Raises:
        OSError: if it cannot be opened.
        UserError: if the tar file is none.
    """
    if split_tar_path(path) is not None:
        return open_member(path)
    if is_remote(path):
        return io.BytesIO(read_remote(path, fresh=fresh))
    return PathManager.open(path, "rb")


def image_path(image_root: str, file_name: str) -> str:
    """The path of an image in an image folder, for :func:`open_file`.

    Args:
        image_root (str): as for :func:`is_image_folder`.
        file_name (str): of the image, as an annotation file has it. It is what the file is called,
            wherever it is: on a web server, too, ``a%20b.jpg`` has a ``%`` in its name.
    """
    if is_http(image_root) and split_tar_path(image_root) is None:
        return join_address(image_root, file_name)
    return os.path.join(image_root, file_name)


def is_image_folder(path: str) -> bool:
    """Whether images can be in there: a folder, a tar file with ``!`` behind it, or an address.

    Args:
        path (str): of an image folder, as in ``DATASETS.COCO_JSON``.
    """
    tar = split_tar_path(path)
    if tar is not None:
        return PathManager.isfile(tar[0])
    return is_remote(path) or PathManager.isdir(path)


def find_missing(file_names: List[str], image_root: str) -> List[str]:
    """Those of the files that are not in an image folder.

    Args:
        file_names (list[str]): relative to the folder.
        image_root (str): as for :func:`is_image_folder`.

    Returns:
        list[str]: in the order of ``file_names``.

    Raises:
        NotImplementedError: if the folder cannot be listed, as that of an ``https://`` address.
    """
    if split_tar_path(image_root) is not None:
        return _missing_in_tar(file_names, image_root)
    # One listing a folder, not one look a file: on a network file system the latter takes minutes.
    listings = {}
    missing = []
    for file_name in file_names:
        folder, name = os.path.split(image_path(image_root, file_name))
        if folder not in listings:
            listings[folder] = _list_folder(folder)
        # The second look is for file systems that do not tell A.jpg from a.jpg.
        if name not in listings[folder] and not _is_file(os.path.join(folder, name)):
            missing.append(file_name)
    return missing


def _missing_in_tar(file_names: List[str], image_root: str) -> List[str]:
    try:
        index = open_tar(split_tar_path(image_root)[0])
    except OSError:
        return list(file_names)
    members = [split_tar_path(os.path.join(image_root, name))[1] for name in file_names]
    return [name for name, member in zip(file_names, members) if index.find(member) is None]


def _is_file(path: str) -> bool:
    return bool(remote_exists(path)) if is_remote(path) else PathManager.isfile(path)


def _list_folder(folder: str) -> Set[str]:
    try:
        return set(PathManager.ls(folder))
    except (OSError, ValueError):  # the latter for a name that no file can have
        return set()
