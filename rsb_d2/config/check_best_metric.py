"""The keys of the validation loss, the best checkpoint and early stopping."""

import difflib
import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.builtin import PANOPTIC
from ..errors import UserError
from ..evaluation.results import metric_names, split_metric
from ..solver.ema import EMA_PREFIX

logger = logging.getLogger(__name__)

_DEFAULT = "bbox/AP"
_MODES = ("auto", "max", "min")


def check_best_metric(cfg: CfgNode) -> None:
    """Check the keys of the validation loss, the best checkpoint and early stopping.

    Args:
        cfg (CfgNode): its ``DATASETS.TEST`` are registered; not frozen. Where the evaluation gives
            no ``bbox/AP``, the default of ``SOLVER.BEST_METRIC``, its own first metric takes its
            place, with a message.

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


def best_mode(cfg: CfgNode) -> str:
    """``"max"`` or ``"min"``: which values of ``SOLVER.BEST_METRIC`` are better."""
    if cfg.SOLVER.BEST_MODE != "auto":
        return cfg.SOLVER.BEST_MODE
    is_loss = split_metric(cfg.SOLVER.BEST_METRIC, cfg.DATASETS.TEST).is_loss
    return "min" if is_loss else "max"


def _check_metric(cfg: CfgNode, given: str) -> None:
    names = cfg.DATASETS.TEST
    metric = split_metric(given, names)
    if metric.averaged and not cfg.MODEL_EMA.ENABLED:
        raise UserError(f"SOLVER.BEST_METRIC is {given}: set MODEL_EMA.ENABLED True, too")
    if metric.is_validation_loss:
        if not cfg.TEST.VAL_LOSS:
            raise UserError(f"SOLVER.BEST_METRIC is {given}: set TEST.VAL_LOSS True, too")
        return
    name = f"{metric.task}/{metric.figure}" if metric.task else metric.figure
    dataset = metric.dataset or names[0]
    if len(names) > 1 and not metric.dataset:
        example = f"{EMA_PREFIX if metric.averaged else ''}{dataset}/{name}"
        raise UserError(
            f"SOLVER.BEST_METRIC is {given}, but there are {len(names)} data sets in "
            f"DATASETS.TEST: name one, as in {example}"
        )
    known = metric_names(cfg, dataset)
    # Another evaluator's metrics are not known here.
    if not known or name in known:
        return
    if given == _DEFAULT:
        cfg.SOLVER.BEST_METRIC = known[0]
        logger.info(f"SOLVER.BEST_METRIC is {known[0]}, as {dataset} is not evaluated by boxes.")
        return
    if metric.task.endswith("_TTA"):
        raise UserError(
            f"SOLVER.BEST_METRIC is {given}: test-time augmentation is evaluated at the end of "
            f"the training only; write {metric.task.removesuffix('_TTA')}/{metric.figure}"
        )
    is_panoptic = MetadataCatalog.get(dataset).get("evaluator_type") == "coco_panoptic_seg"
    if is_panoptic and metric.task == "panoptic_seg" and PANOPTIC.is_missing():
        raise UserError(
            f"SOLVER.BEST_METRIC is {given}, which needs {PANOPTIC.module}; install it: "
            f"{PANOPTIC.install}"
        )
    matches = difflib.get_close_matches(name, known, n=3) or known[:3]
    raise UserError(
        f"SOLVER.BEST_METRIC: evaluation on {dataset} gives no {name}; "
        f"did you mean {', '.join(matches)}?"
    )
