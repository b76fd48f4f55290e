"""A running average of the weights during training, by timm's ``ModelEmaV3``."""

import logging
import os
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase
from timm.utils import ModelEmaV3
from torch import nn

from ..errors import UserError
from ..utils import unwrap

logger = logging.getLogger(__name__)

# The entry of a checkpoint, and the prefix of metrics of the averaged weights.
EMA_KEY = "ema"
EMA_PREFIX = "ema/"


class AveragedWeights:
    """A copy of a model that averages its weights and buffers over the training.

    Every process has one; they are equal, because all processes take equal steps.

    Args:
        model (nn.Module): a detector or classifier, not wrapped.
        decay (float): factor of the old average in each step, from 0 to below 1.
        use_warmup (bool): whether the decay increases by timm's rule, 1 - (1 + step) ** (-2 / 3).
        device (torch.device or None): of the copy; ``None`` for the device of the model.

    Attributes:
        is_loaded (bool): whether the average was loaded from a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        use_warmup: bool = False,
        device: torch.device | None = None,
    ):
        self._average = ModelEmaV3(model, decay=decay, use_warmup=use_warmup, device=device)
        self.is_loaded = False

    @property
    def model(self) -> nn.Module:
        """The copy, in evaluation mode."""
        return self._average.module

    def start_from(self, model: nn.Module) -> None:
        """Set the average to the weights of a model."""
        self._average.set(model)

    def update(self, model: nn.Module, num_steps: int) -> None:
        """Update the average after the optimizer's step ``num_steps``.

        After the first step the average equals the model, as in timm's training.
        """
        self._average.update(model, step=num_steps)

    @contextmanager
    def on_device_of(self, model: nn.Module) -> Iterator[nn.Module]:
        """Move the copy to the device of ``model`` inside the block, for an evaluation."""
        device = next(self.model.parameters()).device
        self.model.to(next(model.parameters()).device)
        try:
            yield self.model
        finally:
            self.model.to(device)

    def state_dict(self) -> Dict[str, torch.Tensor]:
        """Return the averaged weights and buffers by their names in the model."""
        return self.model.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Load a state from :meth:`state_dict`."""
        self.model.load_state_dict(state)
        self.is_loaded = True


class AverageUpdate(HookBase):
    """A hook that updates the average after each step; it comes before hooks that read it."""

    def __init__(self, average: AveragedWeights):
        self._average = average

    def before_train(self):
        if self._average.is_loaded:
            return
        if self.trainer.start_iter:
            logger.warning(
                "--resume: the checkpoint has no averaged weights: MODEL_EMA begins with the "
                f"weights after {self.trainer.start_iter} iterations."
            )
        self._average.start_from(unwrap(self.trainer.model))

    def after_step(self):
        self._average.update(unwrap(self.trainer.model), self.trainer.iter + 1)


def build_average(cfg: CfgNode, model: nn.Module) -> AveragedWeights | None:
    """Build the running average of ``MODEL_EMA``; None if it is off.

    The model is copied, so it must not be compiled or otherwise prepared yet.
    """
    if not cfg.MODEL_EMA.ENABLED:
        return None
    check_average(cfg)
    device = torch.device(cfg.MODEL_EMA.DEVICE) if cfg.MODEL_EMA.DEVICE else None
    return AveragedWeights(unwrap(model), cfg.MODEL_EMA.DECAY, cfg.MODEL_EMA.WARMUP, device=device)


def check_average(cfg: CfgNode) -> None:
    """Check that the names of the averaged weights' metrics are unique."""
    if cfg.MODEL_EMA.ENABLED and len(cfg.DATASETS.TEST) > 1 and EMA_KEY in cfg.DATASETS.TEST:
        raise UserError(
            f"DATASETS.TEST: with MODEL_EMA.ENABLED, {EMA_PREFIX} stands before the metrics of the "
            f"averaged weights; give the data set {EMA_KEY} another name"
        )


def evaluate_with_average(
    test: Callable[[CfgNode, nn.Module], Dict[str, Any]],
    cfg: CfgNode,
    results: Dict[str, Any],
    averaged_model: nn.Module,
) -> Dict[str, Any]:
    """Evaluate the averaged weights and add the results, under ``"ema"``, to those of the model.

    The detections go to ``OUTPUT_DIR/ema/inference``.
    """
    logger.info(f"Evaluating the averaged weights of MODEL_EMA, as {EMA_PREFIX}:")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, EMA_KEY)
    cfg.freeze()
    return {**results, EMA_KEY: test(cfg, averaged_model)}


def load_average(model: nn.Module, checkpoint: Dict[str, Any], path: str) -> bool:
    """Load the averaged weights of a checkpoint into a model.

    Without averaged weights, a warning is logged and False returned.
    """
    if not isinstance(checkpoint.get(EMA_KEY), dict):
        logger.warning(
            f"MODEL_EMA.ENABLED: {path} has no averaged weights in addition to the model."
        )
        return False
    model.load_state_dict(checkpoint[EMA_KEY])
    return True
