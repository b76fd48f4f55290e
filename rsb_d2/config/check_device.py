"""What the machine must have for a config: a GPU, a precision, a compiler."""

import logging
import shutil

import torch
from detectron2.config import CfgNode

from ..errors import UserError

logger = logging.getLogger(__name__)

# What SOLVER.AMP.DTYPE may name, beside "auto" and "native".
AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_WITH_BFLOAT16 = ("amx_tile", "avx512_bf16")


def check_device(cfg: CfgNode) -> None:
    """Check ``MODEL.DEVICE``, and put the CPU in the place of a GPU where torch finds none.

    Args:
        cfg (CfgNode): not frozen; its ``MODEL.DEVICE`` is changed then, with a message.

    Raises:
        UserError: if it is no device, or a GPU beyond those that are there.
    """
    device = cfg.MODEL.DEVICE
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE is {device!r}; write cpu or cuda") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count() > 0:
        raise UserError(
            f"MODEL.DEVICE is {device}, but there are {torch.cuda.device_count()} GPUs, counted "
            "from 0; write cuda"
        )
    if parsed.type == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        logger.warning(f"MODEL.DEVICE is {device}, but torch finds no GPU: running on the CPU.")


def check_amp(cfg: CfgNode) -> None:
    """Check ``SOLVER.AMP`` and switch it off where it would not help.

    Args:
        cfg (CfgNode): not frozen, with the device that is used in ``MODEL.DEVICE``.
            ``SOLVER.AMP.ENABLED`` is set to False, with a message, on the CPU unless
            ``SOLVER.AMP.DTYPE`` asks for bfloat16 by name, few processors compute in it, or is
            ``"native"`` and the processor does.

    Raises:
        UserError: if ``SOLVER.AMP.DTYPE`` is none of the four, or a GPU lacks it.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("auto", "native", *AMP_DTYPES):
        raise UserError(f"SOLVER.AMP.DTYPE is {name!r}; write auto, native, bfloat16 or float16")
    if not cfg.SOLVER.AMP.ENABLED or name == "bfloat16" or cfg.MODEL.DEVICE.startswith("cuda"):
        return
    if name == "native" and cpu_has_bfloat16():
        logger.info("The processor computes in bfloat16, and so does the training.")
    elif name == "native":
        cfg.SOLVER.AMP.ENABLED = False
        logger.info("The processor does not compute in bfloat16: training in float32.")
    else:
        cfg.SOLVER.AMP.ENABLED = False
        logger.warning(
            "SOLVER.AMP.ENABLED is off on the CPU. Where the processor computes in bfloat16 "
            "(AVX512-BF16 or AMX), SOLVER.AMP.DTYPE bfloat16 switches it on."
        )


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16: AMX or AVX512-BF16."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in _WITH_BFLOAT16)
    return any(ask is not None and ask() for ask in asked)


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
