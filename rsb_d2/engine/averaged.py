"""What becomes of the running average of the weights: evaluations, and files of its own."""

import logging
import os
from typing import Any, Callable, Dict

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint import Checkpointer
from ..solver.ema import EMA_PREFIX, AveragedWeights
from .best import WeightsCheckpointer

logger = logging.getLogger(__name__)

_KEY = EMA_PREFIX.rstrip("/")


def evaluate_with_average(
    test: Callable[[CfgNode, nn.Module], Dict[str, Any]],
    cfg: CfgNode,
    results: Dict[str, Any],
    averaged_model: nn.Module,
) -> Dict[str, Any]:
    """Evaluate the averaged weights, and put what comes out beside what the model has reached.

    Args:
        test (callable): of a trainer.
        cfg (CfgNode): its ``DATASETS.TEST``; the detections go to ``OUTPUT_DIR/ema/inference``.
        results (dict[str, Any]): of the model.
        averaged_model (nn.Module): on the model's device.

    Returns:
        dict[str, Any]: ``results``, and under ``"ema"`` those of the averaged weights.
    """
    logger.info(f"Evaluating the averaged weights of MODEL_EMA, as {EMA_PREFIX}:")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, _KEY)
    cfg.freeze()
    return {**results, _KEY: test(cfg, averaged_model)}


def load_average(model: nn.Module, checkpoint: Dict[str, Any], path: str) -> bool:
    """Put the averaged weights of a checkpoint into a model.

    Args:
        model (nn.Module): into which the checkpoint itself was loaded; changed in place.
        checkpoint (dict[str, Any]): what the file holds beside the model.
        path (str): of the file, for the message.

    Returns:
        bool: whether there are any; where not, the model is as it was, and a message says so.
    """
    if not isinstance(checkpoint.get(_KEY), dict):
        logger.warning(f"MODEL_EMA.ENABLED: {path} has no averaged weights beside the model.")
        return False
    model.load_state_dict(checkpoint[_KEY])
    return True


def save_average(
    average: AveragedWeights, save_dir: str, checkpointables: Dict[str, Any], config: Dict[str, Any]
) -> None:
    """Write ``model_final_ema.pth``, which any program takes as ``MODEL.WEIGHTS``.

    Args:
        average (AveragedWeights): to save as the model.
        save_dir (str): of the run.
        checkpointables (dict[str, Any]): to save beside it.
        config (dict[str, Any]): more to save beside it.
    """
    checkpointer: Checkpointer = WeightsCheckpointer(average.model, save_dir, **checkpointables)
    checkpointer.save(f"model_final_{_KEY}", **config)
