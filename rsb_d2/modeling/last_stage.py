"""C4 models: ROI heads that compute res5 of what they crop, with timm's last stage."""

from collections import OrderedDict
from typing import Dict, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from timm.layers import Format
from timm.models import FeatureListNet
from torch import nn

from ..errors import UserError
from ..registration import register
from .norm import apply_norm_policy, fold_norms_in_training
from .spec import backbone_spec
from .timm_backbone import TimmBackbone, build_feature_net, keep_norms_fixed


class TimmLastStage(nn.Module):
    """What a timm model computes between res4 and res5.

    On the res4 of a :class:`rsb_d2.TimmBackbone` it gives timm's res5, bit for bit. The names of
    its weights are timm's, below ``body.``, so that they are loaded from the same file.
    """

    def __init__(self, name: str, norm: str = "BN", norm_eval: bool = True, freeze: bool = False):
        """
        Args:
            name (str): timm's name of the model, with or without a tag.
            norm (str): ``"FrozenBN"``, ``"BN"`` or ``"SyncBN"``, see :func:`apply_norm_policy`.
            norm_eval (bool): as of :class:`rsb_d2.TimmBackbone`.
            freeze (bool): no parameter trains.

        Raises:
            UserError: if timm has no such model, or if its last stage does not stand by itself.
        """
        super().__init__()
        self.name = name
        self.norm_eval = norm_eval
        net = build_feature_net(name, ["res4", "res5"])
        # A list net calls its children one after the other. Others may do something in between.
        if type(net) is not FeatureListNet or net.output_fmt != Format.NCHW:
            raise UserError(
                f"MODEL.TIMM.NAME: {name!r} has no last stage that ROI heads could compute by "
                "itself, as those of C4 do; take a ResNet, or an FPN"
            )
        res4, res5 = list(net.return_layers)[-2:]
        names = list(net)
        names = names[names.index(res4) + 1 : names.index(res5) + 1]
        self.in_channels, self.out_channels = net.feature_info.channels()[-2:]
        self.body = nn.Sequential(OrderedDict((n, net[n]) for n in names))
        apply_norm_policy(self.body, norm)
        if freeze:
            self.body.requires_grad_(False)
        self.train(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, in_channels, H, W), of res4.

        Returns:
            Tensor: (N, out_channels, H / 2, W / 2), rounded up.
        """
        return self.body(x)

    def train(self, mode: bool = True) -> "TimmLastStage":
        """As ``nn.Module.train``, but norm layers that the policy keeps fixed stay in eval mode."""
        super().train(mode)
        keep_norms_fixed(self.body, self.norm_eval)
        return self

    def fold_norms_in_training(self) -> int:
        """As :meth:`rsb_d2.TimmBackbone.fold_norms_in_training`."""
        return fold_norms_in_training(self.body, self.in_channels)


@register(ROI_HEADS_REGISTRY)
class TimmRes5ROIHeads(Res5ROIHeads):
    """The stock ``Res5ROIHeads``, whose res5 is the last stage of the timm backbone.

    Norm policy and freezing are those of the backbone: ``BACKBONE.FREEZE_AT`` 5 freezes res5, too.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> Tuple[nn.Module, int]:
        spec = backbone_spec(cfg)
        stage = TimmLastStage(spec.name, spec.norm, spec.norm_eval, freeze=spec.freeze_at >= 5)
        return stage, stage.out_channels


def find_backbone(model: nn.Module) -> Tuple[str, TimmBackbone | None]:
    """The timm backbone of a model.

    Args:
        model (nn.Module): a detector, an FPN, or the backbone itself.

    Returns:
        str, TimmBackbone or None: its name in the model (``""`` for the model itself), and it.
    """
    for name, module in model.named_modules():
        if isinstance(module, TimmBackbone):
            return name, module
    return "", None


def timm_tensors(
    model: nn.Module,
) -> Tuple[Tuple[str, ...], Dict[str, str], Dict[str, torch.Tensor]]:
    """The tensors of a model's timm network: those of its backbone, and of the res5 of C4.

    Args:
        model (nn.Module): with a :class:`rsb_d2.TimmBackbone` in it.

    Returns:
        tuple[str, ...], dict[str, str], dict[str, Tensor]: with what their names in the model
        begin; by timm's names, their names in the model, and they.
    """
    name, backbone = find_backbone(model)
    parts = {n: m for n, m in model.named_modules() if isinstance(m, TimmLastStage)}
    parts = {f"{n}.body." if n else "body.": m for n, m in {name: backbone, **parts}.items()}
    names, tensors = {}, {}
    for prefix, part in parts.items():
        for of_timm, tensor in part.body.state_dict().items():
            names[of_timm], tensors[of_timm] = prefix + of_timm, tensor
    return tuple(parts), names, tensors
