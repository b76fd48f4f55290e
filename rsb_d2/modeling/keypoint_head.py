"""Keypoint heads of Detectron2 in the channels-last memory format."""

import torch
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from torch import nn


class _ContiguousLogits:
    """A keypoint head whose logits are contiguous, as the stock loss and decoding need them."""

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C, H, W), in any memory format.

        Returns:
            Tensor: (N, K, H', W'), contiguous.
        """
        return super().layers(x).contiguous()


def make_logits_contiguous(model: nn.Module) -> None:
    """Let the keypoint heads of a model return contiguous logits, in place.

    Detectron2's keypoint loss and decoding call ``view`` on the logits, which fails on the
    channels-last tensors that a head with channels-last weights computes.

    Args:
        model (nn.Module): a detector; heads that are no ``BaseKeypointRCNNHead`` stay as they are.
    """
    for module in model.modules():
        kind = type(module)
        if isinstance(module, BaseKeypointRCNNHead) and not isinstance(module, _ContiguousLogits):
            module.__class__ = type(kind.__name__, (_ContiguousLogits, kind), {})
