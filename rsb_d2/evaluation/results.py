"""The results of an evaluation: names of metrics, and folders of predictions."""

import os
from typing import List, NamedTuple, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.builtin import PANOPTIC
from ..extensions import EVALUATORS
from ..solver.ema import EMA_KEY, EMA_PREFIX

_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_OF_COCO_TASK = {
    "bbox": _COCO,
    "segm": _COCO,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}
_LVIS = (*_COCO, "APr", "APc", "APf")
_PANOPTIC = [f"{name}{part}" for part in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]


# Prefix of a training loss that is computed on the test data (TEST.VAL_LOSS).
VALIDATION_PREFIX = "val_"


class Metric(NamedTuple):
    """The parts of a metric's name in ``metrics.json``.

    Args:
        averaged (bool): whether it is a metric of the averaged weights (``MODEL_EMA``).
        dataset (str): name of the test data set; ``""`` for a loss or if there is only one.
        task (str): ``"bbox"``, ``"cls"``, …; ``""`` if the name has no slash.
        figure (str): ``"AP"``, ``"AP-cat"``, ``"val_loss_cls"``, …
    """

    averaged: bool
    dataset: str
    task: str
    figure: str

    @property
    def is_validation_loss(self) -> bool:
        return not self.task and self.figure.startswith(VALIDATION_PREFIX)

    @property
    def is_loss(self) -> bool:
        """Whether the metric is a loss, for which lower is better.

        Names without a slash come from the model. All others come from evaluators, may contain the
        name of a data set or class, and are better when higher.
        """
        return self.is_validation_loss or (not self.task and "loss" in self.figure)


def split_metric(name: str, test_sets: Sequence[str]) -> Metric:
    """Split the name of a metric in ``metrics.json``.

    With several data sets in ``DATASETS.TEST`` (``test_sets``), it contains the name of one of
    them.
    """
    names = sorted(test_sets, key=len, reverse=True) if len(test_sets) > 1 else []
    averaged = name.startswith(EMA_PREFIX) and EMA_KEY not in names
    rest = name[len(EMA_PREFIX) :] if averaged else name
    dataset = next((n for n in names if rest.startswith(f"{n}/")), "")
    rest = rest[len(dataset) + 1 :] if dataset else rest
    task, slash, figure = rest.partition("/")
    return Metric(averaged, dataset, task, figure) if slash else Metric(averaged, dataset, "", rest)


def uses_best_metric(cfg: CfgNode) -> bool:
    """Whether a training of this config chooses a best checkpoint."""
    return bool(cfg.SOLVER.BEST_METRIC and cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0)


def best_mode(cfg: CfgNode) -> str:
    """Return whether higher (``"max"``) or lower values of ``SOLVER.BEST_METRIC`` are better."""
    if cfg.SOLVER.BEST_MODE != "auto":
        return cfg.SOLVER.BEST_MODE
    is_loss = split_metric(cfg.SOLVER.BEST_METRIC, cfg.DATASETS.TEST).is_loss
    return "min" if is_loss else "max"


def metric_names(cfg: CfgNode, dataset_name: str) -> List[str]:
    """List the metrics of a data set's evaluation as in ``metrics.json``, the main one first.

    Empty if they are unknown, as for a user's own evaluator.
    """
    metadata = MetadataCatalog.get(dataset_name)
    things = list(metadata.get("thing_classes", ()))
    kind = metadata.get("evaluator_type")
    if kind in EVALUATORS:
        return EVALUATORS.get(kind).metric_names(cfg, dataset_name)
    if kind == "coco":
        return _of_coco(cfg, things)
    if kind == "coco_panoptic_seg":
        of_panoptic = [] if PANOPTIC.is_missing() else [f"panoptic_seg/{n}" for n in _PANOPTIC]
        return [*of_panoptic, *_of_coco(cfg, things), *_of_sem_seg(metadata)]
    if kind == "sem_seg":
        return _of_sem_seg(metadata)
    if kind == "lvis":
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        return [f"{task}/{name}" for task in tasks for name in _LVIS]
    return {
        "pascal_voc": ["bbox/AP", "bbox/AP50", "bbox/AP75"],
        "cityscapes_instance": ["segm/AP", "segm/AP50"],
        "cityscapes_sem_seg": [f"sem_seg/{n}" for n in ("IoU", "iIoU", "IoU_sup", "iIoU_sup")],
    }.get(kind, [])


def _of_coco(cfg: CfgNode, things: List[str]) -> List[str]:
    tasks = ["bbox"]
    tasks += ["segm"] if cfg.MODEL.MASK_ON else []
    tasks += ["keypoints"] if cfg.MODEL.KEYPOINT_ON else []
    # Detectron2 gives no AP by class if there is only one.
    classes = [f"AP-{name}" for name in things] if len(things) > 1 else []
    return [f"{task}/{name}" for task in tasks for name in (*_OF_COCO_TASK[task], *classes)]


def _of_sem_seg(metadata) -> List[str]:
    stuff = metadata.get("stuff_classes", ())
    of_classes = [f"{figure}-{name}" for figure in ("IoU", "ACC") for name in stuff]
    return [f"sem_seg/{name}" for name in ("mIoU", "fwIoU", "mACC", "pACC", *of_classes)]


def prediction_folder(cfg: CfgNode, dataset_name: str, kind: str = "inference") -> str:
    """Return the folder for the predictions on a data set: ``OUTPUT_DIR/inference``.

    If another data set is evaluated as well, ``OUTPUT_DIR/inference/NAME``. ``kind`` replaces
    ``inference``.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, kind)
    if set(cfg.DATASETS.TEST) <= {dataset_name}:
        return folder
    # A name with slashes stays one folder.
    return os.path.join(folder, dataset_name.replace("%", "%25").replace("/", "%2F"))
