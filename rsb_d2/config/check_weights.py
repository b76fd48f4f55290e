"""``MODEL.WEIGHTS`` before a model is built: named, of the right architecture, and at hand."""

import argparse

from detectron2.config import CfgNode

from ..checkpoint import check_architecture, has_run, locate
from ..errors import UserError
from ..modeling.resnets.spec import BUILDERS


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check ``MODEL.WEIGHTS``, and download what is to be downloaded.

    Args:
        cfg (CfgNode): not changed.
        args (Namespace): its ``eval_only`` and ``resume``: a run that is resumed has its own.

    Raises:
        UserError: if there are none to evaluate, or if they are not there or of another
            architecture than ``MODEL.TIMM.NAME``.
    """
    if args.resume and has_run(cfg.OUTPUT_DIR):
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs MODEL.WEIGHTS, the path of a checkpoint")
    if cfg.MODEL.WEIGHTS:
        if cfg.MODEL.TIMM.NAME:
            check_architecture(cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
        elif cfg.MODEL.WEIGHTS.startswith("timm://"):
            raise UserError(
                f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is for a timm backbone, and MODEL.BACKBONE."
                f"NAME is {cfg.MODEL.BACKBONE.NAME}; write one of {', '.join(BUILDERS)} there"
            )
        try:
            locate(cfg.MODEL.WEIGHTS)  # a download that fails, fails here
        except UserError as e:
            raise UserError(f"MODEL.WEIGHTS: {e}") from e
