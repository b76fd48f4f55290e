"""The listing of a folder of images, one folder a class, and what can be wrong with it."""

import os
from typing import List, NamedTuple

from ...data.images import is_image_name
from ...errors import UserError, printable
from ...files import files_below, listing_error

_EXAMPLES = 3


class ImageFolder(NamedTuple):
    """What is in a folder of images.

    Args:
        class_names (list[str]): in the order of their names, which is that of the class indices.
        files (list[list[str]]): of each class, the paths of its images below its folder, sorted.
        empty_files (list[str]): those of 0 bytes, with the class's folder before them.
        others (list[str]): paths that are left out: files that do not end as an image does, files
            in no folder of a class, and names that begin with a dot.
    """

    class_names: List[str]
    files: List[List[str]]
    empty_files: List[str]
    others: List[str]


def list_image_folder(folder: str) -> ImageFolder:
    """List a folder that has one folder a class; images may lie in folders below that.

    Names that begin with a dot are left out.

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
    reason = listing_error(folder)
    if reason:
        raise UserError(f"{printable(folder)} cannot be listed: {reason}")
    names, loose, others = [], [], []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith("."):
            others.append(path)
        else:
            (names if os.path.isdir(path) else loose).append(name)
    others += (os.path.join(folder, name) for name in loose)
    if not names:
        hint = f"; the {len(loose)} files in it are of no class" if loose else ""
        raise UserError(f"has no folders; put the images of each class into a folder of it{hint}")
    files, empty_files, broken = [], [], []
    for name in names:
        of_class, start = [], len(os.path.join(folder, name)) + 1
        found, passed_over = files_below(os.path.join(folder, name))
        others += passed_over
        for path in passed_over:
            reason = path.endswith("/") and listing_error(path)
            if reason:
                raise UserError(f"{printable(path)} cannot be listed: {reason}")
        for path in found:
            if not is_image_name(path):
                others.append(path)
                continue
            try:
                size = os.stat(path).st_size
            except OSError:  # a link that leads nowhere
                size = None
            if size is None or not os.access(path, os.R_OK):
                broken.append(os.path.join(name, path[start:]))
            elif not size:
                empty_files.append(os.path.join(name, path[start:]))
            of_class.append(path[start:])
        files.append(sorted(of_class))
    if broken:
        raise UserError(
            f"{len(broken)} image files cannot be read ({examples(broken)}); mend or remove them"
        )
    empty = [name for name, of_class in zip(names, files) if not of_class]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(names)} classes have no image ({examples(empty)}); add some, "
            "whose names end as those of images do, such as .jpg, or remove the folder"
        )
    if len(names) == 1:
        raise UserError(f"has one class only ({printable(names[0])}); there must be two or more")
    return ImageFolder(names, files, empty_files, others)


def examples(names: List[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(map(printable, names[:_EXAMPLES])) + ", …" * (len(names) > _EXAMPLES)
