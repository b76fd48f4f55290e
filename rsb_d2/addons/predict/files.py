"""The images and videos that a user names, the names of their outputs, and the files left out."""

import glob
import os
import posixpath
from collections import defaultdict
from typing import Dict, Iterable, List, NamedTuple, Tuple
from urllib.parse import unquote, urlsplit

from ...data.images import is_image_name
from ...errors import UserError, first
from ...files import escape_address, files_below, is_http, listing_error
from ..storage.remote import is_remote
from ..storage.tar import open_tar, split_tar_path
from .video import is_video


class Inputs(NamedTuple):
    """Result of :func:`find_inputs`.

    Args:
        images (list[tuple[str, str]]): path of each image, once, in the order of the inputs, and
            a unique name for its output.
        videos (list[tuple[str, str]]): the same for videos.
        left_out (list[str]): a line for each input with files that are neither.
        skipped (list[tuple[str, str]]): path of each input that cannot be read, and the reason.
    """

    images: List[Tuple[str, str]]
    videos: List[Tuple[str, str]]
    left_out: List[str]
    skipped: List[Tuple[str, str]]


def find_inputs(inputs: List[str], output_dir: str = "") -> Inputs:
    """Find the images and videos that a user names.

    Args:
        inputs (list[str]): images, videos, folders (with all folders in them, linked ones too),
            globs, tar files, members of tar files (``images.tar!/a.jpg``) and URLs of images
            (``https://…``).
        output_dir (str): skipped if it is in one of the folders.

    Returns:
        Inputs: images, videos, and files that are skipped.

    Raises:
        UserError: if one of the inputs does not exist or contains no image or video.
    """
    finder = _Finder(output_dir)
    for path in inputs:
        finder.take(path)
    return finder.inputs()


def find_images(inputs: List[str], output_dir: str = "") -> List[Tuple[str, str]]:
    """Find only the images, with arguments and errors of :func:`find_inputs`."""
    found = find_inputs(inputs, output_dir)
    if not found.images:
        raise UserError(f"there are no images in {first(inputs)}")
    return found.images


class _Finder:
    def __init__(self, output_dir: str):
        self._output_dir = output_dir
        self._images: Dict[str, str] = {}
        self._videos: Dict[str, str] = {}
        self._left_out: List[str] = []
        self._skipped: List[Tuple[str, str]] = []

    def take(self, path: str) -> None:
        if split_tar_path(path) is not None or path.lower().endswith(".tar"):
            self._take_tar(path)
        elif is_remote(path):
            self._take_address(path)
        elif os.path.isfile(path):
            self._add(path, os.path.basename(path))
        elif os.path.isdir(path):
            self._take_folder(path)
        elif glob.has_magic(path):
            self._take_glob(path)
        else:
            raise UserError(f"there is no image or folder {path}")

    def inputs(self) -> Inputs:
        if self._skipped and not (self._images or self._videos):
            path, reason = self._skipped[0]
            raise UserError(f"cannot read {path}: {reason}")
        images = zip(self._images, distinct(self._images.values()))
        videos = zip(self._videos, distinct(self._videos.values()))
        return Inputs(list(images), list(videos), self._left_out, self._skipped)

    def _add(self, path: str, name: str) -> None:
        if is_video(path):
            self._videos.setdefault(os.path.normpath(path), os.path.basename(path))
        else:
            self._images.setdefault(os.path.normpath(path), name)

    def _take_address(self, path: str) -> None:
        name = os.path.basename(
            unquote(urlsplit(escape_address(path)).path) if is_http(path) else path
        )
        if is_video(name):
            self._skipped.append((path, "videos are read only from this machine; download it"))
        else:
            self._images.setdefault(path, name or "image")

    def _take_tar(self, path: str) -> None:
        tar, member = split_tar_path(path) or (path, "")
        try:
            members = [member] if member else open_tar(tar).names()
        except (OSError, UserError) as e:
            reason = getattr(e, "strerror", None) or str(e).removeprefix(f"{tar} ")
            self._skipped.append((tar, reason))
            return
        images = sorted(name for name in members if member or _is_image(name))
        others = set(members).difference(images)
        if not images:
            raise UserError(f"the tar file {tar} has no images in it{_counted(others, ' (', ')')}")
        self._note(tar, others)
        for name in images:
            # Names such as ../a.jpg stay within the output folder.
            self._images.setdefault(f"{tar}!/{name}", posixpath.normpath(f"/{name}")[1:])

    def _take_folder(self, folder: str) -> None:
        files, passed_over = files_below(folder, self._output_dir)
        # Hidden files are used like others; those that cannot be read are reported.
        files = sorted([*files, *filter(os.path.isfile, passed_over)])
        found = [path for path in files if _is_image(path) or is_video(path)]
        others = set(files + passed_over).difference(found)
        folders = {path: listing_error(path) for path in passed_over if path.endswith("/")}
        bad = {path: reason for path, reason in folders.items() if reason}
        self._skipped += bad.items()
        others.difference_update(bad)
        names = [os.path.relpath(path, folder) + "/" * path.endswith("/") for path in others]
        if not found and not bad:
            raise UserError(f"the folder {folder} has no images in it{_counted(names, ' (', ')')}")
        self._note(folder, names)
        for path in found:
            self._add(path, os.path.relpath(path, folder))

    def _take_glob(self, pattern: str) -> None:
        matches = sorted(glob.glob(pattern, recursive=True))
        files = [path for path in matches if os.path.isfile(path)]
        if not files:
            raise UserError(f"no file matches {pattern}")
        for path in files:
            self._add(path, os.path.basename(path))
        folders = {f"{path.rstrip('/')}/" for path in matches if os.path.isdir(path)}
        self._note(pattern, {f for f in folders if not any(file.startswith(f) for file in files)})

    def _note(self, path: str, others: Iterable[str]) -> None:
        if others:
            self._left_out.append(f"{path}: left out {_counted(others)}")


def _is_image(path: str) -> bool:
    return is_image_name(os.path.basename(path).lstrip("."))


def _counted(names: Iterable[str], before: str = "", after: str = "") -> str:
    """Count names by extension: ``3 .txt (a.txt, b.txt, c.txt), 1 folders (.git/)``."""
    by_ending: Dict[str, List[str]] = defaultdict(list)
    for name in sorted(names):
        ending = "folders" if name.endswith("/") else os.path.splitext(name)[1].lower()
        by_ending[ending or "without an ending"].append(name)
    kinds = sorted(by_ending.items(), key=lambda item: (-len(item[1]), item[0]))
    text = ", ".join(f"{len(names)} {ending} ({first(names)})" for ending, names in kinds)
    return f"{before}{text}{after}" if text else ""


def distinct(names: Iterable[str]) -> List[str]:
    """Return file names without extensions, with a number where a name is taken already."""
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
