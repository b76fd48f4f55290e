"""optimize_for_inference: a trained detector made faster without changing its results."""

import copy
import importlib.util
import logging
import os
import shutil
from functools import partial
from typing import Any, Dict, Tuple

import torch
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import nn

from ...errors import UserError
from ...modeling import OpenMMLabCascadeROIHeads, TimmBackbone, TimmRes5ROIHeads
from ...modeling.heads import FastRPN, best
from ...modeling.norm import BATCH_NORM_TYPES
from ...modeling.published import LastLevelP6P7WithoutReLU
from ...utils import unwrap
from .graphs import StaticInference, cuda_graphs
from .layers import (
    InferenceConv2d,
    InferenceFPN,
    InferenceLinear,
    flatten_channels_last,
    fold_net,
    fuse_all,
    has_fused_kernels,
    replace_blocks,
    replace_convs,
    replace_rows,
)
from .roi_align import ChannelsLastROIPooler, pooled_in_float32
from .static import as_list

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROI_HEADS = (StandardROIHeads, CascadeROIHeads, OpenMMLabCascadeROIHeads)
_MARK = "_optimized_for_inference"


def optimize_for_inference(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    compile: bool | str = False,
    to_cpu: bool = False,
) -> nn.Module:
    """Make a faster copy of a detector for inference, which computes the same results.

    Batch norms, ReLUs and the additions of residual blocks and FPN are folded into the
    convolutions, features are channels-last, on the CPU RoIAlign uses all threads, and the RPN
    decodes only the anchors that it selects. On a GPU, models that :func:`static_detector` takes
    compute as it does, and wait for the GPU once per batch. All that covers Faster, Mask and
    Cascade R-CNN, RetinaNet and, but for the last, panoptic FPN and keypoints, on Detectron2's
    ResNets and any :class:`rsb_d2.TimmBackbone`. Parts of other classes, subclasses of
    Detectron2's included, stay as they are.

    The given model keeps its weights, mode, memory format and device. The result shares nothing
    with it: it takes as much memory as the model, which may be dropped. It stays in evaluation
    mode, on the same device.

    Args:
        model (nn.Module): a detector of Detectron2 with weights in float32, on the CPU or a GPU,
            in any mode; a model that is wrapped for data parallelism is unwrapped. One that was
            optimized in the same way is returned itself.
        dtype (torch.dtype): ``torch.float32``; or ``torch.bfloat16`` or ``torch.float16``, in
            which the convolutions and linear layers then compute. The last layers of RPN and box
            head stay in float32, as do anchors, boxes, scores and NMS.
        compile (bool or str): True to compile backbone and dense heads with ``torch.compile``, at
            the first call and for images of all sizes; a few sizes, such as a batch or a feature
            map of 1, are compiled again, up to torch's limit of recompilations. Without a compiler
            there is a warning, and nothing is compiled.
            ``"reduce-overhead"``, on a GPU: nothing is compiled, but the kernels from the padded
            images to the detections are recorded as one CUDA graph when a batch of a padded size
            comes for the second time, and then replayed, which costs the processor next to nothing.
            There are 64 sizes at most. In either way a copy of the result is as without.
        to_cpu (bool): for a model on a GPU that :func:`static_detector` takes, return detections on
            the CPU, copied with the only wait; masks are pasted there. Sizes that repeat are
            recorded as with ``"reduce-overhead"``. Other models return detections where they
            compute.

    Returns:
        nn.Module: takes and returns the same as ``model``.

    Raises:
        UserError: if ``model`` is no detector with a backbone or has other weights than float32,
            if ``dtype`` or ``compile`` is another one, if a model for ``"reduce-overhead"`` has no
            form with fixed shapes, or if the model was optimized in another way. Calling
            ``train()`` on the result raises one, too.
    """
    model = unwrap(model)
    if dtype not in _DTYPES:
        raise UserError(f"dtype is {dtype}; write one of {', '.join(map(str, _DTYPES))}")
    before = getattr(model, _MARK, None)
    if before is not None:
        if before != (dtype, compile, to_cpu):
            raise UserError(
                "the model was optimized with dtype {}, compile {} and to_cpu {} already; optimize "
                "the one that it was made from".format(*before)
            )
        return model
    device = _check_model(model)
    _check_compile(compile, device)
    asked = compile
    compile = compile is True and _has_compiler(device)

    result = copy.deepcopy(model).eval().requires_grad_(False)
    result.backbone = _optimized_backbone(result.backbone, dtype)
    parts = [name for name, _ in result.named_children() if name != "backbone"]
    all_known = all([_optimize_part(result, name, dtype, device) for name in parts])
    if dtype != torch.float32 and not all_known:
        result.backbone.register_forward_hook(_output_to_float32)
    if compile:
        _compile(result)
    elif has_fused_kernels(device, dtype):
        fuse_all(result)
    result.eval()
    if device.type == "cuda":
        _infer_statically(result, device, asked == "reduce-overhead", to_cpu)
    setattr(result, _MARK, (dtype, asked, to_cpu))
    result.train = partial(_refuse_training, result)
    return result


def _check_model(model: nn.Module) -> torch.device:
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise UserError(
            f"optimize_for_inference takes a detector of Detectron2, which has a backbone; "
            f"{type(model).__name__} has none"
        )
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    other = {p.dtype for p in parameters} - {torch.float32}
    if other:
        raise UserError(
            f"optimize_for_inference takes a model in torch.float32, not in {other.pop()}: "
            "leave the casting to its argument dtype"
        )
    return parameters[0].device


def _check_compile(compile: bool | str, device: torch.device) -> None:
    if compile not in (False, True, "reduce-overhead"):
        raise UserError(f'compile is {compile!r}; write True, False or "reduce-overhead"')
    if compile == "reduce-overhead" and device.type != "cuda":
        raise UserError(
            f'compile is "reduce-overhead", which is for a GPU, not {device}; write True'
        )


def _infer_statically(
    model: nn.Module, device: torch.device, must_record: bool, to_cpu: bool
) -> None:
    record = cuda_graphs(device) if must_record or to_cpu else None
    try:
        model.forward = StaticInference(model, record, to_cpu)
    except UserError as e:
        if must_record:
            raise UserError(f'compile is "reduce-overhead", but {e}') from None
        logger.info(f"Detections are computed with waits for the GPU: {e}")


def _refuse_training(model: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces ``train`` of an optimized model, which cannot be trained."""
    if mode:
        raise UserError(
            "a model from optimize_for_inference cannot be trained: train the model that it was "
            "made from, and optimize that again"
        )
    return type(model).train(model, False)


def _optimized_backbone(backbone: nn.Module, dtype: torch.dtype) -> nn.Module:
    bottom_up = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    if isinstance(bottom_up, TimmBackbone):
        fold_net(bottom_up.body, bottom_up.in_channels, dtype)
    elif type(bottom_up) is not ResNet:
        logger.info(f"{type(bottom_up).__name__} stays as it is")
        bottom_up = None
    if type(backbone) is FPN:
        # Everything but the stages, which may be unknown.
        stages, backbone.bottom_up = backbone.bottom_up, None
        replace_convs(backbone, dtype)
        top = backbone.top_block
        if type(top) in (LastLevelP6P7, LastLevelP6P7WithoutReLU):
            top.p6, top.p7 = InferenceConv2d(top.p6, dtype), InferenceConv2d(top.p7, dtype)
        backbone.to(dtype).bottom_up = stages
        backbone = InferenceFPN(backbone).eval()
    if bottom_up is not None:
        _optimize_stages(bottom_up, dtype)
    return backbone


def _optimize_stages(stages: nn.Module, dtype: torch.dtype) -> None:
    """Optimize a ResNet or another timm model, or a part of one, that takes one tensor."""
    replace_convs(stages, dtype)
    replace_blocks(stages)
    stages.to(dtype=dtype, memory_format=torch.channels_last)
    for module in stages.modules():
        if isinstance(module, BATCH_NORM_TYPES):
            module.float()  # torch normalises any dtype with statistics in float32
    stages.register_forward_pre_hook(partial(_to_input, dtype))


def _to_input(
    dtype: torch.dtype, module: nn.Module, inputs: Tuple[torch.Tensor]
) -> Tuple[torch.Tensor]:
    """A forward pre-hook: the images in the dtype and the memory format of the backbone."""
    return (inputs[0].to(dtype).contiguous(memory_format=torch.channels_last),)


def _output_to_float32(
    module: nn.Module, inputs: Any, output: torch.Tensor | Dict[str, torch.Tensor]
) -> torch.Tensor | Dict[str, torch.Tensor]:
    """A forward hook, for a feature or features that an unknown part takes."""
    if isinstance(output, dict):
        return {name: feature.float() for name, feature in output.items()}
    return output.float()


def _optimize_part(model: nn.Module, name: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Optimize a part that takes the features; False if it stays as it is."""
    part = getattr(model, name)
    if FastRPN.takes(part) and type(part.rpn_head) is StandardRPNHead:
        head = part.rpn_head
        replace_convs(head, dtype)
        # In float32 the last layers cost next to nothing; bfloat16 costs 0.1 AP on the sample data.
        head.objectness_logits = InferenceConv2d(head.objectness_logits)
        head.anchor_deltas = InferenceConv2d(head.anchor_deltas)
        rpn = FastRPN.from_stock(part)
        rpn.best = best
        setattr(model, name, rpn.eval())
    elif type(part) is RetinaNetHead:
        _optimize_layers(part, dtype, "cls_score", "bbox_pred")
    elif type(part) is SemSegFPNHead:
        _optimize_layers(part, dtype, "predictor")
    elif type(part) in _ROI_HEADS:
        return _optimize_roi_heads(part, dtype, device)
    elif type(part) is TimmRes5ROIHeads:
        _optimize_c4_heads(part, dtype, device)
    else:
        # Anchor generators and the like compute nothing from the features.
        return not list(part.parameters())
    return True


def _optimize_layers(part: nn.Module, dtype: torch.dtype, *last: str) -> None:
    """Optimize the layers of a part; those that are named return float32."""
    replace_rows(part, dtype)
    replace_convs(part, dtype)
    for name in last:
        layer = getattr(part, name)
        if not isinstance(layer, InferenceConv2d):
            layer = InferenceConv2d(layer, dtype)
            setattr(part, name, layer)
        layer.output_dtype = torch.float32
    part.to(dtype=dtype, memory_format=torch.channels_last)


def _optimize_roi_heads(heads: StandardROIHeads, dtype: torch.dtype, device: torch.device) -> bool:
    box_heads, predictors = as_list(heads.box_head), as_list(heads.box_predictor)
    is_known = all(type(h) is FastRCNNConvFCHead for h in box_heads)
    is_known &= all(type(p) is FastRCNNOutputLayers for p in predictors)
    is_channels_last = _optimize_pooler(heads, "box_pooler", is_known, dtype, device)
    if is_known:
        for box_head in box_heads:
            if is_channels_last:
                flatten_channels_last(box_head, heads.box_pooler.output_size)
            _optimize_layers(box_head, dtype)
        for predictor in predictors:
            _optimize_predictor(predictor)
    if heads.mask_on:
        mask_heads = as_list(heads.mask_head)
        is_known = all(
            type(h) is MaskRCNNConvUpsampleHead and len(h.conv_norm_relus) for h in mask_heads
        )
        if heads.mask_pooler is None:
            return False
        _optimize_pooler(heads, "mask_pooler", is_known, dtype, device)
        if is_known:
            for mask_head in mask_heads:
                _optimize_layers(mask_head, dtype, "predictor")
    if heads.keypoint_on:
        if heads.keypoint_pooler is None:
            return False
        _optimize_pooler(heads, "keypoint_pooler", False, dtype, device)
    return True


def _optimize_predictor(predictor: FastRCNNOutputLayers) -> None:
    """Let a predictor compute in float32, which costs next to nothing."""
    predictor.cls_score = InferenceLinear(predictor.cls_score)
    predictor.bbox_pred = InferenceLinear(predictor.bbox_pred)


def _optimize_c4_heads(heads: TimmRes5ROIHeads, dtype: torch.dtype, device: torch.device) -> None:
    _optimize_pooler(heads, "pooler", True, dtype, device)
    fold_net(heads.res5.body, heads.res5.in_channels, dtype)
    _optimize_stages(heads.res5, dtype)
    if type(heads.box_predictor) is FastRCNNOutputLayers:
        _optimize_predictor(heads.box_predictor)
    mask_head = heads.mask_head if heads.mask_on else None
    if type(mask_head) is MaskRCNNConvUpsampleHead:
        _optimize_layers(mask_head, dtype, "predictor")
    elif dtype != torch.float32:  # one that may not take it
        heads.res5.register_forward_hook(_output_to_float32)


def _optimize_pooler(
    heads: nn.Module, name: str, is_head_known: bool, dtype: torch.dtype, device: torch.device
) -> bool:
    """Replace a pooler; True if the output of the new one is channels-last."""
    pooler = getattr(heads, name)
    if is_head_known and device.type == "cpu" and ChannelsLastROIPooler.takes(pooler):
        setattr(heads, name, ChannelsLastROIPooler(pooler).eval())
        return True
    if dtype != torch.float32 and type(pooler) in (ROIPooler, ChannelsLastROIPooler):
        pooler.register_forward_pre_hook(pooled_in_float32)
    return False


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
    else:
        names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
        found = any(name and shutil.which(name) for name in names)
    if not found:
        needed = "Triton" if device.type == "cuda" else "a C++ compiler"
        logger.warning(f"Nothing is compiled: torch.compile needs {needed}, and there is none.")
    return found


def _compile(model: nn.Module) -> None:
    dense = [model.backbone, getattr(model, "head", None), getattr(model, "sem_seg_head", None)]
    dense.append(getattr(getattr(model, "proposal_generator", None), "rpn_head", None))
    for module in dense:
        if module is not None:
            module.compile(dynamic=True)
