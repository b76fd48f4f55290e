"""Stock Detectron2 and this project with the same weights."""

from typing import Dict, List, Tuple

import numpy as np
import torch
from detectron2 import model_zoo as stock_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from rsb_d2 import model_zoo
from rsb_d2.checkpoint.convert import convert
from rsb_d2.config import add_rsb_config

STOCK_CONFIG = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
OUR_CONFIG = "frcnn_rsb_1x.yaml"

# Standard deviations of the layers whose outputs are logits or box deltas, such that scores are
# spread over 0 ... 1; all others keep the scale of their input.
_STD = {
    "rpn_head.objectness_logits": 0.01,
    "rpn_head.anchor_deltas": 0.01,
    "box_predictor.cls_score": 0.02,
    "box_predictor.bbox_pred": 0.01,
}


def stock_config(device: str | torch.device = "cpu") -> CfgNode:
    """Detectron2's own config of Faster R-CNN, for weights and images as timm has them.

    Args:
        device (str or torch.device): ``MODEL.DEVICE``.

    Returns:
        CfgNode: of Detectron2's zoo, with its own builder of the backbone.
    """
    cfg = get_cfg()
    cfg.merge_from_file(stock_zoo.get_config_file(STOCK_CONFIG))
    ours = our_config(device)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # timm's ResNet has its strides in the 3x3
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = ours.MODEL.PIXEL_MEAN, ours.MODEL.PIXEL_STD
    cfg.INPUT.FORMAT = ours.INPUT.FORMAT
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = str(device)
    return cfg


def our_config(device: str | torch.device = "cpu") -> CfgNode:
    """This project's config of the same detector.

    Args:
        device (str or torch.device): ``MODEL.DEVICE``.

    Returns:
        CfgNode
    """
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(OUR_CONFIG))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = str(device)
    return cfg


def build_both(device: str | torch.device = "cpu", seed: int = 0) -> Tuple[nn.Module, nn.Module]:
    """Build both detectors with the same seeded weights.

    Args:
        device (str or torch.device): to build them on.
        seed (int): of the weights.

    Returns:
        nn.Module, nn.Module: stock Detectron2's and this project's, in evaluation mode.
    """
    ours = build_model(our_config(device)).eval()
    seed_weights(ours, seed)
    stock = build_model(stock_config(device)).eval()
    stock.load_state_dict(to_stock(ours.state_dict()))
    return stock, ours


def to_stock(weights: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """A detector's weights by the names of a stock Detectron2 model.

    Args:
        weights (dict[str, Tensor]): of a detector with a plain timm ResNet.

    Returns:
        dict[str, Tensor]: of the same, with ``build_resnet_fpn_backbone``.
    """
    prefix = "backbone.bottom_up."
    backbone = convert(weights, "detectron2", "resnet50").weights
    # Detectron2's FrozenBatchNorm2d has no counter.
    backbone = {n: t for n, t in backbone.items() if not n.endswith("num_batches_tracked")}
    others = {n: t for n, t in weights.items() if not n.startswith(prefix)}
    return {**{prefix + n: t for n, t in backbone.items()}, **others}


def seed_weights(model: nn.Module, seed: int = 0) -> None:
    """Give a Faster R-CNN weights that detect something everywhere.

    The numbers are NumPy's, which are the same in all versions of torch.

    Args:
        model (nn.Module): changed in place.
        seed (int): of the random numbers.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # no norm and no bias
                layer = ".".join(name.split(".")[-3:-1])
                std = _STD.get(layer, (2 / parameter[0].numel()) ** 0.5)
                values = rng.normal(0, std, parameter.shape).astype(np.float32)
                parameter.copy_(torch.from_numpy(values))


def make_images(size: Tuple[int, int], batch: int, seed: int = 0) -> List[Dict[str, torch.Tensor]]:
    """Images with structure at all scales, as a detector takes them.

    Args:
        size (tuple[int, int]): height and width in pixels.
        batch (int): how many.
        seed (int): of the random numbers.

    Returns:
        list[dict]: each with ``image``, uint8 of shape (3, H, W).
    """
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(batch):
        layers = [
            nn.functional.interpolate(
                torch.from_numpy(rng.normal(0, 40, (1, 3, cells, cells)).astype(np.float32)),
                size=size,
                mode="bilinear",
            )
            for cells in (4, 16, 64, 256)
        ]
        image = (128 + sum(layers)[0]).clamp(0, 255).to(torch.uint8)
        images.append({"image": image, "height": size[0], "width": size[1]})
    return images
