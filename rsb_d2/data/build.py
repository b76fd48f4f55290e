"""The loaders of a config: of a detector's data, or of images with one label each."""

from collections.abc import Callable, Sequence
from typing import Any, Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler

from ..modeling import is_classifier
from ..pretraining import data as classification
from . import loader
from .images import CheckedDatasetMapper
from .workers import WorkerLoader


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
    return build_inference_loader(records, mapper, cfg.DATALOADER.NUM_WORKERS)


def build_inference_loader(
    records: Sequence[dict], mapper: Callable[[dict], dict], num_workers: int
) -> WorkerLoader:
    """Build the loader of Detectron2's ``build_detection_test_loader``, as a ``WorkerLoader``.

    Args:
        records (sequence of dict): in Detectron2's dataset format, of all processes.
        mapper (callable): from a record to what the model takes.
        num_workers (int): processes that load for this one; 0 loads in this one.

    Returns:
        WorkerLoader: of this process's share of the images, in lists of one.
    """
    if isinstance(records, list):
        records = DatasetFromList(records, copy=False)
    return WorkerLoader(
        MapDataset(records, mapper),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        num_workers=num_workers,
        collate_fn=_same,
    )


def _same(batch: list[Any]) -> list[Any]:
    return batch
