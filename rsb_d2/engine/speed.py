"""The switches that make a model train faster and in less memory, with the same results."""

import logging
import shutil

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..modeling import TimmBackbone

logger = logging.getLogger(__name__)


def prepare_for_training(model: nn.Module, cfg: CfgNode) -> None:
    """Set a model up as ``MODEL.CHANNELS_LAST``, ``TIMM.FOLD_NORM`` and ``COMPILE`` say.

    The names and values of the weights are what they were.

    Args:
        model (nn.Module): a detector, also one that is distributed; changed in place.
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.

    Raises:
        UserError: if ``MODEL.COMPILE`` is set and there is nothing to compile with.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if cfg.MODEL.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    if cfg.MODEL.TIMM.FOLD_NORM:
        for module in list(model.modules()):
            if isinstance(module, TimmBackbone) and module.norm_eval:
                module.fold_norms_in_training()
    if cfg.MODEL.COMPILE:
        check_compiler(cfg)
        # In place, so that the weights keep their names; one program for all sizes of images.
        model.backbone.compile(dynamic=True)


def check_compiler(cfg: CfgNode) -> None:
    """Check that torch.compile finds what it needs, long before it would miss it.

    Args:
        cfg (CfgNode): ``MODEL.COMPILE`` and ``MODEL.DEVICE`` are read.

    Raises:
        UserError: if the model is to be compiled for the CPU and there is no C++ compiler.
    """
    if not cfg.MODEL.COMPILE or cfg.MODEL.DEVICE.startswith("cuda"):
        return
    from torch._inductor import config as inductor_config

    names = inductor_config.cpp.cxx
    names = names if isinstance(names, (list, tuple)) else (names,)
    if not any(name and shutil.which(name) for name in names):
        raise UserError(
            "MODEL.COMPILE needs a C++ compiler, and there is no g++; install one, name it in the "
            "environment variable CXX, or write False"
        )
