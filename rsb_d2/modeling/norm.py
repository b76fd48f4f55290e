"""The norm policy: which batch-norm layers train, and what of them."""

from detectron2.layers import FrozenBatchNorm2d
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

NORM_POLICIES = ("FrozenBN", "BN", "SyncBN")

# nn.SyncBatchNorm is no subclass of nn.BatchNorm2d; timm's BatchNormAct2d and SyncBatchNormAct
# are subclasses of one of the two.
BATCH_NORM_TYPES = (nn.BatchNorm2d, nn.SyncBatchNorm)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Detectron2's ``FrozenBatchNorm2d`` with the activation that timm's ``BatchNormAct2d`` fuses.

    Detectron2's own conversion replaces the whole layer and so loses the activation.
    """

    def __init__(self, norm: BatchNormAct2d):
        """
        Args:
            norm (BatchNormAct2d): the layer to copy; its ``drop`` and ``act`` are taken over.
        """
        super().__init__(norm.num_features, norm.eps)
        self.drop = norm.drop
        self.act = norm.act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def _frozen_copy(norm: nn.Module) -> FrozenBatchNorm2d:
    if isinstance(norm, BatchNormAct2d):
        frozen = FrozenBatchNormAct2d(norm)
    else:
        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.to(norm.running_mean.device)
    if norm.affine:
        frozen.weight.copy_(norm.weight.detach())
        frozen.bias.copy_(norm.bias.detach())
    frozen.running_mean.copy_(norm.running_mean)
    frozen.running_var.copy_(norm.running_var)
    return frozen


def apply_norm_policy(module: nn.Module, policy: str) -> None:
    """Replace the batch-norm layers below ``module``, in place, by those of a policy.

    Args:
        module (nn.Module): a network; it is not itself a batch-norm layer.
        policy (str): ``"FrozenBN"`` puts Detectron2's ``FrozenBatchNorm2d`` in their place (a
            fused activation is kept), ``"SyncBN"`` the synchronised layers of torch and timm,
            ``"BN"`` leaves them. Other kinds of norm layers, such as layer norm, stay.

    Raises:
        ValueError: for any other policy.
    """
    if policy not in NORM_POLICIES:
        raise ValueError(f"norm policy {policy!r} is none of {', '.join(NORM_POLICIES)}")
    if policy == "SyncBN":
        convert_sync_batchnorm(module)
    elif policy == "FrozenBN":
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BATCH_NORM_TYPES):
                    setattr(parent, name, _frozen_copy(child))
