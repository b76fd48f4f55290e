"""Images with one label each, registered from the config: folders, what timm reads, ImageNet.

A data set that is used is listed and checked once, before anything is trained on it;
``folder_check.py`` says for what.
"""

import logging
import os
from typing import Any, Dict, List

from detectron2.config import CfgNode

from ...errors import UserError, printable
from ...registration import architecture_name
from .dataset import ClassificationDataset, register, used
from .folder_check import ImageFolder, examples, list_image_folder
from .timm_dataset import TimmDataset

logger = logging.getLogger(__name__)


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
                f"{self.source}: {len(listing.others)} files are left out, as they are not images "
                "by their names or in no folder of a class "
                f"({examples([os.path.relpath(f, self.source) for f in listing.others])})"
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
    """Register the data sets of ``DATASETS.IMAGE_FOLDER`` and ``.TIMM``; check those that are used.

    ImageNet is checked alike where it is used; registering the same entry again does nothing.

    Args:
        cfg (CfgNode): with this project's keys. Each entry of ``DATASETS.IMAGE_FOLDER`` is
            ``[name, folder]``, the folder relative to the working directory; it may begin with
            ``~``. Each of ``DATASETS.TIMM`` is ``[name, timm's name, root, split]``, see
            :class:`rsb_d2.pretraining.data.timm_dataset.TimmDataset`.
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
    for entry in cfg.DATASETS.TIMM:
        is_entry = isinstance(entry, (list, tuple)) and len(entry) == 4
        if not (is_entry and all(isinstance(e, str) for e in entry) and entry[0]):
            raise UserError(
                f"DATASETS.TIMM has the entry {entry!r}; write [[name, timm's name, root, split], "
                "...], four strings each, of which timm's name, root and split may be empty"
            )
        register(TimmDataset(*entry), "DATASETS.TIMM")

    train = [] if eval_only else used(cfg.DATASETS.TRAIN)
    test = used(cfg.DATASETS.TEST)
    for dataset in train + test:
        dataset.check()
    for dataset in test:
        if isinstance(dataset, ImageFolderDataset):
            dataset.check_all_readable()
    check_same_classes(train + test)
    if architecture_name(cfg) == "ImageClassifier":
        _check_num_classes(cfg, train + test)


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
