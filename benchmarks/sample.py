"""AP on the sample data."""

import logging
import tempfile
from contextlib import contextmanager
from typing import Iterator

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from torch import nn

from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.data import register_coco_json
from rsb_d2.evaluation import build_evaluator


def sample_config(cfg: CfgNode) -> CfgNode:
    """Make the sample data where it is missing, and register it.

    Args:
        cfg (CfgNode): of ``configs/frcnn_rsb_sample.yaml``, not frozen.

    Returns:
        CfgNode: the same.
    """
    make_sample_data(cfg.DATASETS.SAMPLE_DATA)
    register_coco_json(cfg, eval_only=True)
    return cfg


def average_precision(cfg: CfgNode, model: nn.Module) -> float:
    """Evaluate a detector on the first data set of ``DATASETS.TEST``.

    Args:
        cfg (CfgNode): of :func:`sample_config`.
        model (nn.Module): a detector.

    Returns:
        float: box AP in points, 0 ... 100.
    """
    name = cfg.DATASETS.TEST[0]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        results = inference_on_dataset(
            model, build_detection_test_loader(cfg, name), build_evaluator(cfg, name, folder)
        )
    return results["bbox"]["AP"]


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("detectron2")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
