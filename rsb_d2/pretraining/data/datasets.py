"""Data sets of images with one label each: their common part, and folders of images.

torchvision's ``ImageFolder`` would follow linked
folders in circles, make classes of hidden folders, take broken links for images, and not report
the files that it leaves out. Archives and data sets of a hub are in :mod:`.timm_datasets`.
"""

import logging
import os
from typing import Any, Dict, List, NamedTuple

from detectron2.data import MetadataCatalog

from ...data.images import is_image_name
from ...errors import UserError, first, how_to_make, printable
from ...files import files_below, listing_error

logger = logging.getLogger(__name__)

# The evaluator type of every data set whose images have one label each.
EVALUATOR_TYPE = "image_classification"


class ClassificationDataset:
    """A data set of images with one label each; Detectron2's catalog calls it for its records.

    A record is ``{"file_name", "image_id", "label"}``.

    Args:
        name (str): under which it is registered.
        source (str): where the data is, for messages.

    Attributes:
        class_names (list[str] or None): in the order of the labels; None before the check.
    """

    def __init__(self, name: str, source: str):
        self.name = name
        self.source = source
        self.class_names: List[str] | None = None

    def __call__(self) -> List[Dict[str, Any]]:
        """Return the records, which are not stored here: the loader packs its own copy."""
        self.check()
        return self._records()

    def check(self) -> None:
        """Check the data once, and set the metadata."""
        if self.class_names is not None:
            return
        try:
            self.class_names = self._check()
        except UserError as e:
            raise UserError(f"data set {self.name}: {printable(self.source)}: {e}") from None
        self.set_metadata()

    def set_metadata(self) -> None:
        if MetadataCatalog.get(self.name).get("thing_classes") not in (None, self.class_names):
            MetadataCatalog.remove(self.name)  # metadata cannot be set twice
        metadata = MetadataCatalog.get(self.name)
        metadata.evaluator_type = EVALUATOR_TYPE
        if self.class_names is not None:
            metadata.thing_classes = self.class_names

    def is_same(self, other: Any) -> bool:
        """Return whether another data set has the same data."""
        return type(self) is type(other) and self.source == other.source

    def _check(self) -> List[str]:
        raise NotImplementedError

    def _records(self) -> List[Dict[str, Any]]:
        raise NotImplementedError


# ---- folders ----


class ImageFolder(NamedTuple):
    """The contents of a folder with one folder per class.

    Args:
        class_names (list[str]): sorted, which is the order of the class indices.
        files (list[list[str]]): sorted paths of the images of each class, below its folder.
        empty_files (list[str]): paths of images of 0 bytes, below the folder.
        others (list[str]): paths that are left out: files without the extension of an image, files
            outside the class folders, and hidden files and folders.
    """

    class_names: List[str]
    files: List[List[str]]
    empty_files: List[str]
    others: List[str]


def list_image_folder(folder: str) -> ImageFolder:
    """List a local folder with one folder per class, and check it; subfolders are searched as well.

    Raises:
        UserError: if the folder does not exist, has fewer than two classes or a class without an
            image, or if a file cannot be opened. The message does not name the folder.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise UserError("is not a folder")
        raise UserError(f"there is no such folder{how_to_make(folder)}")
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
        hint = f"; the {len(loose)} files in it have no class" if loose else ""
        raise UserError(f"has no folders; put the images of each class into a folder{hint}")
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
            except OSError:  # a broken link
                size = None
            if size is None or not os.access(path, os.R_OK):
                broken.append(os.path.join(name, path[start:]))
            elif not size:
                empty_files.append(os.path.join(name, path[start:]))
            of_class.append(path[start:])
        files.append(sorted(of_class))
    if broken:
        raise UserError(
            f"{len(broken)} image files cannot be read ({first(broken, 3)}); repair or remove them"
        )
    empty = [name for name, of_class in zip(names, files) if not of_class]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(names)} classes have no image ({first(empty, 3)}); add files "
            "with the extension of an image, such as .jpg, or remove the folder"
        )
    if len(names) == 1:
        raise UserError(f"has one class only ({printable(names[0])}); there must be two or more")
    return ImageFolder(names, files, empty_files, others)


class ImageFolderDataset(ClassificationDataset):
    """A local folder with one folder per class."""

    def __init__(self, name: str, folder: str):
        super().__init__(name, folder)
        self._listing: ImageFolder | None = None

    def _check(self) -> List[str]:
        self._listing = listing = list_image_folder(self.source)
        if listing.others:
            logger.info(
                f"{self.source}: {len(listing.others)} files are left out, which have no "
                "extension of an image or are in no folder of a class "
                f"({first([os.path.relpath(f, self.source) for f in listing.others], 3)})"
            )
        return listing.class_names

    def check_all_readable(self) -> None:
        """Refuse empty files, which training skips but which would falsify an evaluation."""
        empty = self._listing.empty_files
        if empty:
            raise UserError(
                f"data set {self.name}: {printable(self.source)}: {len(empty)} image files are "
                f"empty ({first(empty, 3)}); repair or remove them"
            )

    def _records(self) -> List[Dict[str, Any]]:
        records = []
        for label, (name, files) in enumerate(zip(self.class_names, self._listing.files)):
            folder = os.path.join(self.source, name)
            for file in files:
                path = os.path.join(folder, file)
                records.append({"file_name": path, "image_id": len(records), "label": label})
        return records
