"""A small detector on any backbone of timm, and a comparison of what its backbone computes."""

import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from rsb_d2 import TimmBackbone, add_rsb_config


def make_config(name="resnet18", meta_architecture="GeneralizedRCNN", device="cpu", **timm_keys):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128]]
    cfg.MODEL.MASK_ON = meta_architecture == "GeneralizedRCNN"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.TIMM.NAME = name
    cfg.INPUT.FORMAT = "RGB"
    data = timm.get_pretrained_cfg(name)
    cfg.MODEL.PIXEL_MEAN = [255 * x for x in data.mean]
    cfg.MODEL.PIXEL_STD = [255 * x for x in data.std]
    for key, value in timm_keys.items():
        setattr(cfg.MODEL.TIMM, key, value)
    return cfg


def make_detector(name="resnet18", seed=1, **timm_keys):
    torch.manual_seed(seed)
    return build_model(make_config(name, **timm_keys)).eval()


def check_features(detector, name, weights, image=None):
    """Compare the backbone of a detector with timm's complete model with the same weights."""
    # The complete model: the backbone is built on timm's feature net.
    image = torch.randn(1, 3, 64, 64) if image is None else image
    model = timm.create_model(name).eval()
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )
    with torch.no_grad():
        features = model.forward_intermediates(image, intermediates_only=True)
        expected = {image.shape[-1] // f.shape[-1]: f for f in features}
        backbone = detector if isinstance(detector, TimmBackbone) else detector.backbone.bottom_up
        for feature, values in backbone.eval()(image).items():
            stride = backbone.output_shape()[feature].stride
            torch.testing.assert_close(values, expected[stride], rtol=1e-5, atol=1e-5)
