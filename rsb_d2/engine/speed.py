"""The switches that make a model train faster and in less memory, with the same results."""

import logging

from detectron2.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..addons.accelerate.convolution import convolve_by_products, products_are_faster
from ..config.check_device import check_compiler
from ..modeling import TimmBackbone, TimmLastStage
from ..modeling.proposals import ChoosingRPN
from ..pretraining.classifier import ImageClassifier

logger = logging.getLogger(__name__)


def prepare_for_training(model: nn.Module, cfg: CfgNode) -> None:
    """Set a model up as ``MODEL.TIMM.FOLD_NORM`` and ``MODEL.COMPILE`` say.

    A stock RPN chooses its proposals before it decodes them then; they are the same. With
    ``MODEL.CHANNELS_LAST`` on a processor with AVX2 alone, a detector's convolutions get the
    gradients of their weights as products of matrices.
    The names and values of the weights are what they were. ``MODEL.CHANNELS_LAST``, which matters
    for an evaluation alone as well, is :meth:`rsb_d2.Trainer.build_model`'s.

    Args:
        model (nn.Module): a detector, also one that is distributed; changed in place.
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.

    Raises:
        UserError: if ``MODEL.COMPILE`` is set and there is nothing to compile with.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    rpn = getattr(model, "proposal_generator", None)
    if ChoosingRPN.takes(rpn):
        rpn.__class__ = ChoosingRPN  # the same proposals
    if cfg.MODEL.TIMM.FOLD_NORM:
        for module in list(model.modules()):
            if isinstance(module, (TimmBackbone, TimmLastStage)) and module.norm_eval:
                module.fold_norms_in_training()
    is_plain = cfg.MODEL.CHANNELS_LAST and cfg.MODEL.DEVICE == "cpu" and not cfg.MODEL.COMPILE
    # A classifier keeps torch's, so that a pretraining rounds as timm's does.
    if is_plain and products_are_faster() and not isinstance(model, ImageClassifier):
        convolve_by_products(model)
    if cfg.MODEL.COMPILE:
        check_compiler(cfg)
        # In place, so that the weights keep their names; for detectors one program for all sizes of
        # images, which a classifier has one of.
        if isinstance(model, ImageClassifier):
            model.network.compile()
        else:
            model.backbone.compile(dynamic=True)
