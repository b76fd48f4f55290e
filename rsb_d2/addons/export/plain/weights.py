"""The weights of a detector on a plain ResNet, by Detectron2's names and for BGR."""

import torch
from torch import nn

from ....checkpoint.formats import resnet_names
from ....checkpoint.formats.timm_names import COUNTER
from ....checkpoint.reading import StateDict

# Of Detectron2's FrozenBatchNorm2d, which no key of its config changes.
FROZEN_EPS = 1e-5

_BOTTOM_UP = "backbone.bottom_up."
_BODY = f"{_BOTTOM_UP}body."
_FIRST_CONV = f"{_BODY}conv1.weight"


def plain_weights(model: nn.Module) -> StateDict:
    """Weights for ``build_resnet_fpn_backbone`` and stock heads.

    Args:
        model (nn.Module): a detector with an FPN on a plain ResNet of timm's that takes RGB.

    Returns:
        dict[str, Tensor]: of the same detector with ``RESNETS.NORM`` FrozenBN, which takes BGR.
    """
    weights = dict(model.state_dict())
    weights[_FIRST_CONV] = weights[_FIRST_CONV].flip(1)  # of its input channels
    for name, module in model.named_modules():
        if name.startswith(_BODY) and hasattr(module, "running_var"):
            variance = weights[f"{name}.running_var"]
            weights[f"{name}.running_var"] = variance + (module.eps - FROZEN_EPS)
    body = {n[len(_BODY) :]: t for n, t in weights.items() if n.startswith(_BODY)}
    resnet = resnet_names.to_detectron2(body)
    # FrozenBatchNorm2d counts no batches.
    plain = {_BOTTOM_UP + n: t for n, t in resnet.items() if not n.endswith(COUNTER)}
    plain.update((n, t) for n, t in weights.items() if not n.startswith(_BODY))
    return {n: _contiguous(t) for n, t in plain.items()}


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()  # also of a model that is channels-last
