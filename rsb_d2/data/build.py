"""The loaders of a config: of a detector's data, or of images with one label each."""

from typing import Iterable

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader

from ..modeling import is_classifier
from ..pretraining import data as classification
from . import loader
from .images import CheckedDatasetMapper


def build_train_loader(cfg: CfgNode) -> loader.TrainLoader:
    """Build the loader of a training.

    Args:
        cfg (CfgNode): with this project's keys.

    Raises:
        UserError: if there is nothing to train on, or the batch cannot be shared out.
    """
    if is_classifier(cfg):
        return classification.build_train_loader(cfg)
    return loader.build_train_loader(cfg)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list]:
    """Build the loader of an evaluation: this process's share of the images, each once.

    Args:
        cfg (CfgNode): with this project's keys.
        dataset_name (str): a registered data set.
    """
    if is_classifier(cfg):
        return classification.build_test_loader(cfg, dataset_name)
    mapper = CheckedDatasetMapper(cfg, is_train=False)
    records = loader.evaluated_records(cfg, dataset_name)
    return build_detection_test_loader(
        records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
