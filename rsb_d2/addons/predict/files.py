"""Which images a user names, and what their outputs are called."""

import glob
import os
from typing import Dict, Iterable, List, Tuple
from urllib.parse import urlparse

from PIL import Image

from ...errors import UserError
from ..storage.remote import is_remote
from ..storage.tar import open_tar, split_tar_path
from .video_reader import is_video


def find_images(inputs: List[str], output_dir: str = "") -> List[Tuple[str, str]]:
    """Find the images that a user names.

    Args:
        inputs (list[str]): images, folders (with all folders in them), globs, tar files, members of
            one (``images.tar!/a.jpg``) and addresses of images (``https://…``).
        output_dir (str): passed over when it is in one of the folders.

    Returns:
        list[tuple[str, str]]: the path of each image, once and in the order of ``inputs``, and a
        name that no other has, for its output.

    Raises:
        UserError: if one of them is not there or has no image in it.
    """
    found: Dict[str, str] = {}
    for path in inputs:
        if is_remote(path):
            found.setdefault(path, os.path.basename(urlparse(path).path) or "image")
            continue
        if split_tar_path(path) is not None or path.endswith(".tar"):
            named = _images_in_tar(path)
        elif os.path.isfile(path):
            named = [(path, os.path.basename(path))]
        elif os.path.isdir(path):
            named = [(p, os.path.relpath(p, path)) for p in _images_in(path, output_dir)]
            if not named:
                raise UserError(f"the folder {path} has no images in it")
        elif glob.has_magic(path):
            matches = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
            named = [(p, os.path.basename(p)) for p in matches]
            if not named:
                raise UserError(f"no file matches {path}")
        else:
            raise UserError(f"there is no image or folder {path}")
        for image, name in named:
            found.setdefault(os.path.normpath(image), name)
    return list(zip(found, distinct(found.values())))


def _images_in_tar(path: str) -> List[Tuple[str, str]]:
    tar, member = split_tar_path(path) or (path, "")
    try:
        members = [member] if member else open_tar(tar).names()
    except OSError as e:
        raise UserError(f"cannot read {tar}: {e.strerror or e}") from None
    images = [name for name in members if member or name.lower().endswith(_endings())]
    if not images:
        raise UserError(f"the tar file {tar} has no images in it")
    return [(f"{tar}!/{name}", name) for name in sorted(images)]


def _endings() -> Tuple[str, ...]:
    Image.init()
    return tuple(ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN)


def _images_in(folder: str, output_dir: str) -> List[str]:
    endings = _endings()
    output_dir = os.path.realpath(output_dir) if output_dir else None
    images = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(parent, f)) != output_dir]
        names = [name for name in names if name.lower().endswith(endings) and not is_video(name)]
        images += [os.path.join(parent, name) for name in names]
    return sorted(images)


def distinct(names: Iterable[str]) -> List[str]:
    """Names of files without their endings, each with a number where another has it already."""
    taken, distinct = set(), []
    for name in names:
        stem, n = os.path.splitext(name)[0], 1
        candidate = stem
        while candidate in taken:
            n += 1
            candidate = f"{stem}_{n}"
        taken.add(candidate)
        distinct.append(candidate)
    return distinct
