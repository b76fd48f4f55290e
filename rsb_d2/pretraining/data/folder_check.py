"""The listing of a folder of images, one folder a class, and what can be wrong with it."""

import os
from typing import Iterator, List, NamedTuple, Tuple

from timm.data.readers.img_extensions import get_img_extensions

from ...errors import UserError, printable

_EXAMPLES = 3


class ImageFolder(NamedTuple):
    """What is in a folder of images.

    Args:
        class_names (list[str]): in the order of their names, which is that of the class indices.
        files (list[list[str]]): of each class, the paths of its images below its folder, sorted.
        empty_files (list[str]): those of 0 bytes, with the class's folder before them.
        others (list[str]): files that are passed over, as they do not end as an image does.
    """

    class_names: List[str]
    files: List[List[str]]
    empty_files: List[str]
    others: List[str]


def list_image_folder(folder: str) -> ImageFolder:
    """List a folder that has one folder a class; images may lie in folders below that.

    Names that begin with a dot are passed over.

    Args:
        folder (str): a local path.

    Returns:
        ImageFolder

    Raises:
        UserError: if there is no such folder, if it has no class, only one, or one without an
            image, or if a file cannot be opened; the message does not name the folder.
    """
    if not os.path.isdir(folder):
        what = "is no folder" if os.path.exists(folder) else "there is no such folder"
        raise UserError(what)
    names, loose = [], []
    for entry in _entries(folder):
        (names if entry.is_dir() else loose).append(entry.name)
    if not names:
        hint = f"; the {len(loose)} files in it are of no class" if loose else ""
        raise UserError(f"has no folders; put the images of each class into a folder of it{hint}")
    names.sort()
    files, empty_files, broken, others = [], [], [], []
    for name in names:
        of_class, start = [], len(os.path.join(folder, name)) + 1
        for entry in _files(os.path.join(folder, name)):
            if os.path.splitext(entry.name)[1].lower() not in _EXTENSIONS:
                others.append(entry.path)
                continue
            try:
                size = entry.stat().st_size
            except OSError:  # a link that leads nowhere
                size = None
            if size is None or not os.access(entry.path, os.R_OK):
                broken.append(os.path.join(name, entry.path[start:]))
            elif not size:
                empty_files.append(os.path.join(name, entry.path[start:]))
            of_class.append(entry.path[start:])
        files.append(sorted(of_class))
    if broken:
        raise UserError(
            f"{len(broken)} image files cannot be read ({examples(broken)}); mend or remove them"
        )
    empty = [name for name, of_class in zip(names, files) if not of_class]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(names)} classes have no image ({examples(empty)}); add some, "
            f"whose names end in {', '.join(sorted(_EXTENSIONS))}, or remove the folder"
        )
    if len(names) == 1:
        raise UserError(f"has one class only ({printable(names[0])}); there must be two or more")
    return ImageFolder(names, files, empty_files, others)


_EXTENSIONS = get_img_extensions(as_set=True)


def _entries(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as e:
        raise UserError(f"{printable(folder)} cannot be listed: {e.strerror}") from None


def _files(folder: str) -> Iterator[os.DirEntry]:
    folders: List[Tuple[str, ...]] = [(folder,)]
    while folders:
        chain = folders.pop()
        for entry in _entries(chain[-1]):
            if not entry.is_dir():
                yield entry
            # A link to a folder above it would go round for ever.
            elif os.path.realpath(entry.path) not in map(os.path.realpath, chain):
                folders.append((*chain, entry.path))


def examples(names: List[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(map(printable, names[:_EXAMPLES])) + ", …" * (len(names) > _EXAMPLES)
