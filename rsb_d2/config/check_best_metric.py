"""The keys of the validation loss, the best checkpoint and early stopping."""

import difflib

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.classification import EVALUATOR_TYPE
from ..errors import UserError
from ..evaluation.classification import MAX_LOGGED_CLASSES
from ..solver.ema import EMA_PREFIX

_COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MODES = ("auto", "max", "min")


def check_best_metric(cfg: CfgNode) -> None:
    """Check the keys of the validation loss, the best checkpoint and early stopping.

    Args:
        cfg (CfgNode): its ``DATASETS.TEST`` are registered.

    Raises:
        UserError: if a value is none that is known, or needs what is switched off.
    """
    metric, patience = cfg.SOLVER.BEST_METRIC, cfg.SOLVER.EARLY_STOP_PATIENCE
    if cfg.SOLVER.BEST_MODE not in _MODES:
        raise UserError(
            f"SOLVER.BEST_MODE is {cfg.SOLVER.BEST_MODE!r}; write one of {', '.join(_MODES)}"
        )
    if patience < 0:
        raise UserError(
            f"SOLVER.EARLY_STOP_PATIENCE is {patience}; it counts evaluations, and 0 is off"
        )
    if patience and not (cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TEST and metric):
        raise UserError(
            "SOLVER.EARLY_STOP_PATIENCE counts evaluations: set TEST.EVAL_PERIOD (in "
            "iterations), DATASETS.TEST and SOLVER.BEST_METRIC, too"
        )
    if cfg.TEST.VAL_LOSS and not cfg.DATASETS.TEST:
        raise UserError("TEST.VAL_LOSS: DATASETS.TEST is empty: name the data to compute it on")
    if uses_best_metric(cfg):
        _check_metric(cfg, metric)


def uses_best_metric(cfg: CfgNode) -> bool:
    """Whether a training of this config chooses a best checkpoint."""
    return bool(cfg.SOLVER.BEST_METRIC and cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0)


def _check_metric(cfg: CfgNode, metric: str) -> None:
    given = metric
    if metric.startswith(EMA_PREFIX):
        if not cfg.MODEL_EMA.ENABLED:
            raise UserError(f"SOLVER.BEST_METRIC is {metric}: set MODEL_EMA.ENABLED True, too")
        metric = metric[len(EMA_PREFIX) :]
    if metric.startswith("val_"):
        if not cfg.TEST.VAL_LOSS:
            raise UserError(f"SOLVER.BEST_METRIC is {given}: set TEST.VAL_LOSS True, too")
        return
    name, names = metric, cfg.DATASETS.TEST
    dataset = names[0]
    if len(names) > 1:
        dataset = next((n for n in names if metric.startswith(f"{n}/")), None)
        if dataset is None:
            before = given[: len(given) - len(metric)]
            raise UserError(
                f"SOLVER.BEST_METRIC is {given}, but there are {len(names)} data sets in "
                f"DATASETS.TEST: name one, as in {before}{names[0]}/{metric}"
            )
        name = metric[len(dataset) + 1 :]
    known = _classification_metrics(dataset) or _coco_metrics(cfg, dataset)
    # Another evaluator's metrics are not known here.
    if known and name not in known:
        matches = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise UserError(
            f"SOLVER.BEST_METRIC: evaluation on {dataset} gives no {name}; "
            f"did you mean {', '.join(matches)}?"
        )


def _classification_metrics(dataset: str) -> list:
    metadata = MetadataCatalog.get(dataset)
    if metadata.get("evaluator_type") != EVALUATOR_TYPE:
        return []
    classes = metadata.thing_classes
    names = ["top1", "top5"]
    if len(classes) <= MAX_LOGGED_CLASSES:
        names += [f"top1-{name}" for name in classes]
    return [f"cls/{name}" for name in names]


def _coco_metrics(cfg: CfgNode, dataset: str) -> list:
    metadata = MetadataCatalog.get(dataset)
    if metadata.get("evaluator_type") != "coco" or cfg.MODEL.KEYPOINT_ON:
        return []
    tasks = ["bbox"] + (["segm"] if cfg.MODEL.MASK_ON else [])
    classes = [f"AP-{name}" for name in metadata.get("thing_classes", ())]
    return [f"{task}/{name}" for task in tasks for name in (*_COCO_METRICS, *classes)]
