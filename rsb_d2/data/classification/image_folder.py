"""Images with one label each, registered from the config: ``DATASETS.IMAGE_FOLDER``, ImageNet.

A data set that is used is listed and checked once, before anything is trained on it;
``folder_check.py`` says for what.
"""

import logging
import os
from typing import Any, Dict, List

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError, printable
from ...modeling import is_classifier
from .folder_check import ImageFolder, examples, list_image_folder

logger = logging.getLogger(__name__)

# The type of evaluator of every data set whose images have one label each.
EVALUATOR_TYPE = "image_classification"


class ClassificationDataset:
    """A data set of images with one label each: the function that Detectron2's catalog calls.

    Its records are ``{"file_name", "image_id", "label"}``.

    Args:
        name (str): the name it is registered under.
        source (str): what messages call the place of the data.

    Attributes:
        class_names (list[str] or None): in the order of the labels, once it is checked.
    """

    def __init__(self, name: str, source: str):
        self.name = name
        self.source = source
        self.class_names: List[str] | None = None

    def __call__(self) -> List[Dict[str, Any]]:
        """Return the records; not kept here, as the loader keeps its own packed copy."""
        self.check()
        return self._records()

    def check(self) -> None:
        """Look at the data, unless it was looked at before; set the metadata.

        Raises:
            UserError: if it cannot be used.
        """
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
        """Whether another object stands for the same data."""
        return type(self) is type(other) and self.source == other.source

    def _check(self) -> List[str]:
        raise NotImplementedError

    def _records(self) -> List[Dict[str, Any]]:
        raise NotImplementedError


class ImageFolderDataset(ClassificationDataset):
    """A folder with one folder a class.

    Args:
        name (str): the name it is registered under.
        folder (str): a local path.
    """

    def __init__(self, name: str, folder: str):
        super().__init__(name, folder)
        self._listing: ImageFolder | None = None

    def _check(self) -> List[str]:
        self._listing = listing = list_image_folder(self.source)
        if listing.others:
            logger.info(
                f"{self.source}: {len(listing.others)} files are no images by their names and are "
                f"passed over ({examples([os.path.basename(f) for f in listing.others])})"
            )
        return listing.class_names

    def check_all_readable(self) -> None:
        """What is skipped in training would make a figure of evaluation wrong.

        Raises:
            UserError: if a file is empty.
        """
        empty = self._listing.empty_files
        if empty:
            raise UserError(
                f"data set {self.name}: {printable(self.source)}: {len(empty)} image files are "
                f"empty ({examples(empty)}); mend or remove them"
            )

    def _records(self) -> List[Dict[str, Any]]:
        records = []
        for label, (name, files) in enumerate(zip(self.class_names, self._listing.files)):
            folder = os.path.join(self.source, name)
            for file in files:
                path = os.path.join(folder, file)
                records.append({"file_name": path, "image_id": len(records), "label": label})
        return records


def register_image_folders(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Register the data sets of ``DATASETS.IMAGE_FOLDER``, and check those that are used.

    ImageNet is checked alike where it is used; registering the same entry again does nothing.

    Args:
        cfg (CfgNode): with this project's keys. Each entry of ``DATASETS.IMAGE_FOLDER`` is
            ``[name, folder]``, the folder relative to the working directory; it may begin with
            ``~``.
        eval_only (bool): check ``DATASETS.TEST`` alone, so that an evaluation runs where the
            training data is not.

    Raises:
        UserError: if an entry has the wrong shape or a name that is taken; if a folder cannot be
            used (``folder_check.py`` says when); if the data sets that are used differ in their
            classes, or have another number than the model.
    """
    for entry in cfg.DATASETS.IMAGE_FOLDER:
        is_entry = isinstance(entry, (list, tuple)) and len(entry) == 2
        if not (is_entry and all(isinstance(e, str) and e for e in entry)):
            raise UserError(
                f"DATASETS.IMAGE_FOLDER has the entry {entry!r}; write [[name, folder], ...], two "
                "strings each"
            )
        name, folder = entry
        folder = os.path.abspath(os.path.expanduser(folder))
        register(ImageFolderDataset(name, folder), "DATASETS.IMAGE_FOLDER")

    train = [] if eval_only else used(cfg.DATASETS.TRAIN)
    test = used(cfg.DATASETS.TEST)
    for dataset in train + test:
        dataset.check()
    for dataset in test:
        if isinstance(dataset, ImageFolderDataset):
            dataset.check_all_readable()
    check_same_classes(train + test)
    if is_classifier(cfg):
        _check_num_classes(cfg, train + test)


def register(dataset: ClassificationDataset, key: str) -> None:
    """Register a data set, or do nothing where its equal is registered.

    Args:
        dataset (ClassificationDataset): with a name.
        key (str): of the config that it is from.

    Raises:
        UserError: if the name is that of something else.
    """
    name = dataset.name
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, dataset)
        dataset.set_metadata()
        return
    registered = DatasetCatalog[name]
    if not isinstance(registered, ClassificationDataset):
        raise UserError(f"{key}: {name} is the name of another data set; choose another one")
    if not dataset.is_same(registered):
        raise UserError(
            f"{key}: {name} is registered already, with {printable(registered.source)}; choose "
            f"another name for {printable(dataset.source)}"
        )
    registered.class_names = None  # the folder may have changed


def used(names: List[str]) -> List[ClassificationDataset]:
    """Those of some names that stand for images with one label each."""
    found = [DatasetCatalog[name] for name in names if name in DatasetCatalog]
    return [dataset for dataset in found if isinstance(dataset, ClassificationDataset)]


def check_same_classes(datasets: List[ClassificationDataset]) -> None:
    """Check that data sets have the same classes, in the same order.

    Args:
        datasets (list[ClassificationDataset]): checked.

    Raises:
        UserError: if they differ; it names a class of one that another lacks.
    """
    for other in datasets[1:]:
        first = datasets[0]
        if first.class_names == other.class_names:
            continue
        for a, b in ((first, other), (other, first)):
            missing = [n for n in a.class_names if n not in set(b.class_names)]
            if missing:
                raise UserError(
                    f"{first.name} and {other.name} must have the same classes: "
                    f"{len(missing)} of {len(a.class_names)} in {a.name} ({examples(missing)}) "
                    f"have no images in {b.name}, {printable(b.source)}"
                )
        raise UserError(f"{first.name} and {other.name} have their classes in another order")


def _check_num_classes(cfg: CfgNode, datasets: List[ClassificationDataset]) -> None:
    num_classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    if datasets and num_classes != len(datasets[0].class_names):
        names = datasets[0].class_names
        raise UserError(
            f"MODEL.CLASSIFIER.NUM_CLASSES is {num_classes}, but {datasets[0].name} has "
            f"{len(names)} classes ({examples(names)}); write "
            f"MODEL.CLASSIFIER.NUM_CLASSES {len(names)}"
        )


# ImageNet as it is unpacked, https://image-net.org; its val is sorted into folders like its train.
_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _split in ("train", "val"):
    register(
        ImageFolderDataset(f"imagenet_{_split}", os.path.join(_ROOT, "imagenet", _split)),
        "ImageNet",
    )
