"""Faster layers for training on a CPU, with results equal within rounding."""

from detectron2.config import CfgNode
from torch import nn

from ...extensions import TASKS
from ...registration import architecture_name
from .convolution import convolve_by_products, products_are_faster


def prepare_training(model: nn.Module, cfg: CfgNode) -> None:
    """Replace layers of a detector by ones that train faster on this CPU, in place.

    With ``MODEL.CHANNELS_LAST`` on a processor with AVX2 alone, convolutions get the gradients of
    their weights as products of matrices. Names and values of the weights stay.

    Args:
        model (nn.Module): not wrapped. A classifier keeps torch's layers, so that a pretraining
            rounds as timm's does.
        cfg (CfgNode): ``MODEL.CHANNELS_LAST``, ``.DEVICE`` and ``.COMPILE`` are read.
    """
    is_plain = cfg.MODEL.CHANNELS_LAST and cfg.MODEL.DEVICE == "cpu" and not cfg.MODEL.COMPILE
    is_detector = architecture_name(cfg) not in TASKS
    if is_plain and is_detector and products_are_faster():
        convolve_by_products(model)
