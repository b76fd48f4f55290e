"""The switches that make a model train faster and in less memory, with the same results."""

import logging

from detectron2.config import CfgNode
from torch import nn

from ..config.check_device import check_compiler
from ..extensions import ACCELERATION
from ..modeling import TimmBackbone, TimmLastStage
from ..modeling.proposals import ChoosingRPN
from ..utils import unwrap
from .tasks import get_task

logger = logging.getLogger(__name__)


def prepare_for_training(model: nn.Module, cfg: CfgNode) -> None:
    """Set a model up as ``MODEL.TIMM.FOLD_NORM`` and ``MODEL.COMPILE`` say.

    A stock RPN chooses its proposals before it decodes them then; they are the same. An
    installed acceleration of the CPU may replace layers by faster ones.
    The names and values of the weights are what they were. ``MODEL.CHANNELS_LAST``, which matters
    for an evaluation alone as well, is :meth:`rsb_d2.Trainer.build_model`'s.

    Args:
        model (nn.Module): a detector, also one that is distributed; changed in place.
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.

    Raises:
        UserError: if ``MODEL.COMPILE`` is set and there is nothing to compile with.
    """
    model = unwrap(model)
    rpn = getattr(model, "proposal_generator", None)
    if ChoosingRPN.takes(rpn):
        rpn.__class__ = ChoosingRPN  # the same proposals
    if cfg.MODEL.TIMM.FOLD_NORM:
        for module in list(model.modules()):
            if isinstance(module, (TimmBackbone, TimmLastStage)) and module.norm_eval:
                module.fold_norms_in_training()
    if "prepare_training" in ACCELERATION:
        ACCELERATION.get("prepare_training")(model, cfg)
    if cfg.MODEL.COMPILE:
        check_compiler(cfg)
        get_task(cfg).compile(model)
