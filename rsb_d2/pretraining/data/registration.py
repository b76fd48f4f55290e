"""Registration of the data sets of images with one label each that a config names."""

import os
from typing import List

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ...errors import UserError, first, printable
from ...registration import architecture_name
from .datasets import ClassificationDataset, ImageFolderDataset
from .timm_datasets import TimmDataset


def register(dataset: ClassificationDataset, key: str) -> None:
    """Register a data set from a config key under its name, unless it is registered already."""
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
    """Return the data sets among some names whose images have one label each."""
    found = [DatasetCatalog[name] for name in names if name in DatasetCatalog]
    return [dataset for dataset in found if isinstance(dataset, ClassificationDataset)]


def register_image_folders(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Register the data sets of ``DATASETS.IMAGE_FOLDER`` and ``.TIMM``, and check the used ones.

    ImageNet is checked in the same way. Registering an entry again has no effect.

    Args:
        cfg (CfgNode): with this project's keys. Each entry of ``DATASETS.IMAGE_FOLDER`` is
            ``[name, folder]``, the folder relative to the working directory or to ``~``. Each
            of ``DATASETS.TIMM`` is ``[name, timm's name, root, split]``, see
            :class:`.timm_datasets.TimmDataset`.
        eval_only (bool): check only ``DATASETS.TEST``, so that an evaluation runs without the
            training data.

    Raises:
        UserError: if an entry has the wrong form or a name that is taken, if a data set cannot be
            used, or if the used data sets differ in their classes or have another number of
            classes than the model.
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
                "...], four strings each; timm's name, root and split may be empty"
            )
        register(TimmDataset(*entry), "DATASETS.TIMM")

    train = [] if eval_only else used(cfg.DATASETS.TRAIN)
    test = used(cfg.DATASETS.TEST)
    for dataset in train + test:
        dataset.check()
    for dataset in test:
        if isinstance(dataset, ImageFolderDataset):
            dataset.check_all_readable()
    _check_same_classes(train + test)
    if architecture_name(cfg) == "ImageClassifier":
        _check_num_classes(cfg, train + test)


def _check_same_classes(datasets: List[ClassificationDataset]) -> None:
    """Check that data sets have the same classes, in the same order."""
    for other in datasets[1:]:
        reference = datasets[0]
        if reference.class_names == other.class_names:
            continue
        for a, b in ((reference, other), (other, reference)):
            missing = [n for n in a.class_names if n not in set(b.class_names)]
            if missing:
                raise UserError(
                    f"{reference.name} and {other.name} must have the same classes: "
                    f"{len(missing)} of {len(a.class_names)} in {a.name} ({first(missing, 3)}) "
                    f"have no images in {b.name}, {printable(b.source)}"
                )
        raise UserError(f"{reference.name} and {other.name} have their classes in another order")


def _check_num_classes(cfg: CfgNode, datasets: List[ClassificationDataset]) -> None:
    num_classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    if datasets and num_classes != len(datasets[0].class_names):
        names = datasets[0].class_names
        raise UserError(
            f"MODEL.CLASSIFIER.NUM_CLASSES is {num_classes}, but {datasets[0].name} has "
            f"{len(names)} classes ({first(names, 3)}); write "
            f"MODEL.CLASSIFIER.NUM_CLASSES {len(names)}"
        )


# ImageNet as unpacked, https://image-net.org, with val sorted into folders like train.
_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _split in ("train", "val"):
    register(
        ImageFolderDataset(f"imagenet_{_split}", os.path.join(_ROOT, "imagenet", _split)),
        "ImageNet",
    )
