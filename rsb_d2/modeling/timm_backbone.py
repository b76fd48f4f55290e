"""timm's feature extractors as Detectron2 backbones."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Dict, List, Sequence, Set, Tuple

import timm
import torch
from detectron2.modeling import Backbone
from timm.layers import Format, nhwc_to
from timm.models import FeatureListNet, is_model, list_models, list_pretrained
from torch import nn

from ..errors import UserError, did_you_mean
from ..utils import run_on_meta
from .norm import BATCH_NORM_TYPES, NORM_POLICIES, apply_norm_policy, fold_norms_in_training

# Detectron2's names of the stages and their strides, as its stock YAML files use them. The stem
# here is timm's: the features before the max-pooling, where Detectron2's ResNet has them after it.
FEATURE_STRIDES = {"stem": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(Backbone):
    """Any timm model with hierarchical features as a Detectron2 ``Backbone``.

    The network is that of ``timm.create_model(name, features_only=True)``, so with the same
    weights its features are timm's, bit for bit. It starts from random weights; they are loaded
    from ``MODEL.WEIGHTS`` afterwards, as everywhere in Detectron2.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "BN",
        norm_eval: bool = True,
        freeze_at: int = 0,
        in_channels: int = 3,
        res5_dilation: int = 1,
    ):
        """
        Args:
            name (str): timm's name of the model, with or without a tag: ``"resnet50"``,
                ``"resnet50.a1_in1k"``.
            out_features (sequence of str): which of ``"stem"``, ``"res2"`` ... ``"res5"`` (strides
                2, 4, 8, 16, 32) to return, in this order.
            norm (str): ``"FrozenBN"``, ``"BN"`` or ``"SyncBN"``, see :func:`apply_norm_policy`.
            norm_eval (bool): normalize with the running statistics, which stay fixed, also
                in training; weight and bias of the norm layers train nevertheless.
            freeze_at (int): 0 freezes nothing, 1 the stem, 2 the stem and res2, ... 5 everything
                up to res5. The norm layers of a frozen stage are completely fixed.
            in_channels (int): channels of the input.
            res5_dilation (int): 2 gives res5 the stride 16 and dilated convolutions, timm's
                ``output_stride=16``, as the DC5 models have it; 1 the stride 32.

        Raises:
            UserError: if timm has no such model, if it has no hierarchical features or not the
                wanted ones, if it takes images of some sizes only or gives features of other sizes
                than their strides say, if it cannot be dilated, or if an argument is out of its
                range.
        """
        super().__init__()
        _check_arguments(out_features, norm, freeze_at, res5_dilation)
        self.name = name
        self.norm_eval = norm_eval
        self.in_channels = in_channels
        self._out_features = list(out_features)
        self.body = build_feature_net(name, self._out_features, in_channels, res5_dilation)

        strides = self.body.feature_info.reduction()
        channels = self.body.feature_info.channels()
        # The stages are those of the strides without dilation.
        self._stages = [_STAGE_OF_STRIDE[stride] for stride in strides]
        if self._stages.count("res4") == 2:
            self._stages[-1] = "res5"
        index = {f: self._stages.index(f) for f in self._out_features}
        self._out_feature_strides = {f: strides[i] for f, i in index.items()}
        self._out_feature_channels = {f: channels[i] for f, i in index.items()}
        self._channels_last = getattr(self.body, "output_fmt", None) == Format.NHWC
        self._check_sizes((name, *self._out_features, in_channels, res5_dilation))

        # Frozen before the norm layers are replaced: the names of the parameters tell the stages.
        frozen = self._parameters_up_to(freeze_at, in_channels) if freeze_at else set()
        apply_norm_policy(self.body, norm)
        self._freeze(frozen)
        self.train(self.training)

    @property
    def size_divisibility(self) -> int:
        """int: the largest stride returned. An input whose height and width are multiples of it
        gives features of exactly height / stride and width / stride."""
        return max(self._out_feature_strides.values())

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            x (Tensor): normalized images, (N, C, H, W); RGB for timm's weights.

        Returns:
            dict[str, Tensor]: for each of ``out_features``, in that order, a feature map of shape
            (N, channels, H / stride, W / stride), rounded up where the stride does not divide.
        """
        features = dict(zip(self._stages, self.body(x)))
        if self._channels_last:
            return {f: nhwc_to(features[f], Format.NCHW) for f in self._out_features}
        return {f: features[f] for f in self._out_features}

    def train(self, mode: bool = True) -> "TimmBackbone":
        """As ``nn.Module.train``, but norm layers that the policy keeps fixed stay in eval mode."""
        super().train(mode)
        keep_norms_fixed(self.body, self.norm_eval)
        return self

    def fold_norms_in_training(self) -> int:
        """Compute batch norm as a part of the convolutions while training with fixed statistics.

        Returns:
            int: how many norm layers are folded, see :func:`.norm.fold_norms_in_training`.
        """
        return fold_norms_in_training(self.body, self.in_channels)

    def _check_sizes(self, key: Hashable) -> None:
        """Check that images of a detector's sizes give features of height and width / stride.

        Once in a process for each ``key``.
        """
        if key in _OF_ANY_SIZE:
            return
        height, width = _TRIED_SIZE
        try:
            features, _ = run_on_meta(self, (1, self.in_channels, height, width))
        except Exception as e:  # whatever an architecture makes of a size that it does not take
            reason = " ".join(str(e).split()) or type(e).__name__
            raise UserError(
                f"MODEL.TIMM.NAME: {self.name!r} does not take images of any size, as a detector "
                f"needs (at {height} x {width}: {reason[:200]}); take a model such as 'resnet50'"
            ) from e
        for name, feature in features.items():
            stride, (h, w) = self._out_feature_strides[name], feature.shape[2:]
            if (h * stride, w * stride) != (height, width):
                raise UserError(
                    f"MODEL.TIMM.NAME: the {name} of {self.name!r} has {h} x {w} cells for images "
                    f"of {height} x {width}, not the {height // stride} x {width // stride} of its "
                    f"stride {stride}, which FPN and anchors need; take a model such as 'resnet50'"
                )
        _OF_ANY_SIZE.add(key)

    def _parameters_up_to(self, freeze_at: int, in_channels: int) -> Set[str]:
        """Names of the parameters that stages 1 to ``freeze_at`` compute with."""
        wanted_stride = 2**freeze_at
        strides = [FEATURE_STRIDES[stage] for stage in self._stages]
        if wanted_stride > max(strides):
            return {name for name, _ in self.body.named_parameters()}
        has_no_stem = wanted_stride < min(strides)
        index = 0 if has_no_stem else strides.index(wanted_stride)
        used = parameters_by_modules(self.body, index)
        if used is None:
            used = parameters_by_graph(self.body, index, in_channels)
        return set(_without_last_block(used) if has_no_stem else used)

    def _freeze(self, names: Set[str]) -> None:
        for name, parameter in self.body.named_parameters():
            if name in names:
                parameter.requires_grad = False


_STAGE_OF_STRIDE = {stride: name for name, stride in FEATURE_STRIDES.items()}
# No square, and 9 and 11 at stride 32: no window or fixed grid of an architecture divides both.
_TRIED_SIZE = (288, 352)
_OF_ANY_SIZE: Set[Hashable] = set()


class TimmLastStage(nn.Module):
    """The layers of a timm model between res4 and res5.

    On the res4 of a :class:`rsb_d2.TimmBackbone` it gives timm's res5, bit for bit. The names of
    its weights are timm's, below ``body.``, so that they are loaded from the same file.
    """

    def __init__(self, name: str, norm: str = "BN", norm_eval: bool = True, freeze: bool = False):
        """Args:
            name (str): timm's name of the model, with or without a tag.
            norm, norm_eval: as of :class:`rsb_d2.TimmBackbone`.
            freeze (bool): no parameter trains.

        Raises:
            UserError: if timm has no such model, or if its last stage is not separate.
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
        """Compute res5, (N, out_channels, H / 2, W / 2) rounded up, of res4, (N, C, H, W)."""
        return self.body(x)

    def train(self, mode: bool = True) -> "TimmLastStage":
        """As ``nn.Module.train``, but norm layers that the policy keeps fixed stay in eval mode."""
        super().train(mode)
        keep_norms_fixed(self.body, self.norm_eval)
        return self

    def fold_norms_in_training(self) -> int:
        """As :meth:`rsb_d2.TimmBackbone.fold_norms_in_training`."""
        return fold_norms_in_training(self.body, self.in_channels)


def parameters_by_modules(net: nn.Module, index: int) -> List[str] | None:
    """Names of the parameters that a feature is computed with, in order, if timm names its modules.

    ``FeatureListNet`` runs its modules one after the other, each once, and lists the modules whose
    outputs are the features (timm/models/_features.py). None for other kinds of nets.
    """
    if type(net) is not FeatureListNet:
        return None
    modules = list(net)
    modules = modules[: modules.index(list(net.return_layers)[index]) + 1]
    return [f"{m}.{name}" for m in modules for name, _ in net[m].named_parameters()]


@torch.enable_grad()  # it asks autograd, also where the model is built without gradients
def parameters_by_graph(net: nn.Module, index: int, in_channels: int) -> List[str]:
    """As :func:`parameters_by_modules`, for every architecture.

    They are found in autograd's graph of a forward pass on the meta device, which costs a third of
    the time that it takes to build a model.
    """
    features, parameters = run_on_meta(net, (1, in_channels, *_input_size(net)), with_graph=True)
    feature = features[index].sum()
    grads = torch.autograd.grad(feature, list(parameters.values()), allow_unused=True)
    return [name for name, grad in zip(parameters, grads) if grad is not None]


def keep_norms_fixed(body: nn.Module, norm_eval: bool) -> None:
    """Put batch-norm layers into eval mode: all of them, or those whose parameters are frozen."""
    for module in body.modules():
        if isinstance(module, BATCH_NORM_TYPES) and (norm_eval or _is_frozen(module)):
            module.eval()


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _check_arguments(
    out_features: Sequence[str], norm: str, freeze_at: int, res5_dilation: int
) -> None:
    names = ", ".join(FEATURE_STRIDES)
    unknown = [f for f in out_features if f not in FEATURE_STRIDES]
    if unknown:
        raise UserError(f"MODEL.TIMM.OUT_FEATURES: {unknown[0]!r} is not one of {names}")
    if not out_features or len(set(out_features)) < len(out_features):
        raise UserError(
            f"MODEL.TIMM.OUT_FEATURES: {list(out_features)} must name each wanted one of {names} "
            "once, and at least one"
        )
    if norm not in NORM_POLICIES:
        raise UserError(f"MODEL.TIMM.NORM: {norm!r} is not one of {', '.join(NORM_POLICIES)}")
    if freeze_at not in range(len(FEATURE_STRIDES) + 1):
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT: {freeze_at} is not between 0 (nothing is frozen) and "
            f"{len(FEATURE_STRIDES)} (everything is)"
        )
    if res5_dilation not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION: {res5_dilation} is neither 1 nor 2")


def check_model_name(name: str) -> None:
    """Check that timm can build a model of this name without asking a server for it.

    The name may have a tag: ``"resnet50"``, ``"resnet50.a1_in1k"``.
    """
    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        known = list_models()
    elif tag and name not in list_pretrained(architecture + "*"):
        known = list_pretrained(architecture + ".*")
    else:
        return
    hint = did_you_mean(name, known, "see timm.list_models()", cutoff=0.5)
    raise UserError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no model {name!r}; {hint}")


def build_feature_net(
    name: str, out_features: Sequence[str], in_channels: int = 3, res5_dilation: int = 1
) -> nn.Module:
    """Build timm's feature net with one output for each stage up to the deepest wanted one.

    It takes images and returns a list of features, which its ``feature_info`` describes. Arguments
    and errors as :class:`TimmBackbone`.
    """
    check_model_name(name)
    net = _create_feature_net(name, in_channels)
    # Every feature that timm knows of the model, not only the ones that it returns by default.
    # Where several have one stride, as in a stage's blocks, the last is the stage's output.
    index_of_stride = {
        info["reduction"]: i for i, info in enumerate(net.feature_info.info) if info["module"]
    }
    if len(index_of_stride) == 1:
        raise UserError(
            f"MODEL.TIMM.NAME: {name!r} has no hierarchical features, all have stride "
            f"{next(iter(index_of_stride))}; take a model with stages, such as 'resnet50'"
        )
    missing = [f for f in out_features if FEATURE_STRIDES[f] not in index_of_stride]
    if missing:
        has = [_STAGE_OF_STRIDE[s] for s in index_of_stride if s in _STAGE_OF_STRIDE]
        raise UserError(
            f"MODEL.TIMM.OUT_FEATURES: {name!r} has no {missing[0]} (stride "
            f"{FEATURE_STRIDES[missing[0]]}); it has {', '.join(has) or 'none of the five'}"
        )
    deepest = max(FEATURE_STRIDES[f] for f in out_features)
    indices = [i for s, i in index_of_stride.items() if s in _STAGE_OF_STRIDE and s <= deepest]
    if res5_dilation == 2 and "res5" in out_features:
        net = _create_dilated_net(name, in_channels, tuple(indices))
    elif indices != list(net.feature_info.out_indices):
        net = _create_feature_net(name, in_channels, out_indices=tuple(indices))
    _drop_blocks_above(net, net.feature_info.module_name()[-1])
    return net


def _create_feature_net(name: str, in_channels: int, **kwargs) -> nn.Module:
    kwargs.update(pretrained=False, features_only=True, in_chans=in_channels)
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        # Attention over windows takes any image size only when told to; a detector needs that.
        try:
            return timm.create_model(name, strict_img_size=False, **kwargs)
        except TypeError:  # the architecture has no such option
            pass
    try:
        return timm.create_model(name, **kwargs)
    except (RuntimeError, AttributeError, AssertionError) as e:
        raise UserError(f"MODEL.TIMM.NAME: timm extracts no features of {name!r}: {e}") from e


def _create_dilated_net(name: str, in_channels: int, indices: Tuple[int, ...]) -> nn.Module:
    """As without dilation, but that the stage of stride 32 has stride 16."""
    try:
        net = _create_feature_net(name, in_channels, out_indices=indices, output_stride=16)
        is_dilated = net.feature_info.reduction()[-1] == 16
    except (TypeError, UserError):  # the architecture has no such option, or refuses this value
        is_dilated = False
    if not is_dilated:
        raise UserError(
            f"MODEL.RESNETS.RES5_DILATION: 2: timm's {name} has no dilation (output_stride=16); "
            "write 1, or name a ResNet in MODEL.TIMM.NAME"
        )
    return net


def _drop_blocks_above(net: nn.Module, module_name: str) -> None:
    """Drop the blocks after the deepest feature where timm's feature net keeps them all.

    timm prunes most architectures itself; its EfficientNet-like nets keep all ``blocks``.
    """
    parent_name, _, index = module_name.rpartition(".")
    blocks = dict(net.named_children()).get(parent_name)
    if isinstance(blocks, nn.Sequential):
        del blocks[int(index) + 1 :]


def _input_size(net: nn.Module) -> Sequence[int]:
    return net.pretrained_cfg.get("input_size", (3, 224, 224))[1:]


def _without_last_block(parameter_names: Sequence[str]) -> Sequence[str]:
    """The stem of an architecture that has no feature at its stride, given res2's parameters.

    Args:
        parameter_names (sequence of str): of the layers up to res2, in order of registration.
            The stem is everything before the last child of the module that holds them all.
    """
    paths = [name.split(".") for name in parameter_names]
    depth = next(i for i, level in enumerate(zip(*paths)) if len(set(level)) > 1)
    last_child = paths[-1][depth]
    return [name for name, path in zip(parameter_names, paths) if path[depth] != last_child]
