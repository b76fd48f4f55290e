"""optimize_for_inference of Detectron2's own detectors."""

import pytest
import torch
from detectron2 import model_zoo as stock_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from rsb_d2 import optimize_for_inference
from tests.helpers.models.optimized import check_detections, make_images, randomise_norms

STOCK = {
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
}


def make_stock_model(kind, *opts, device="cpu"):
    cfg = get_cfg()
    cfg.merge_from_file(stock_zoo.get_config_file(STOCK[kind]))
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.PIXEL_STD", "[57.4, 57.1, 58.4]"),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "32"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "6", "MODEL.RETINANET.NUM_CLASSES", "6"),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "MODEL.RPN.PRE_NMS_TOPK_TEST", "300"),
            *opts,
        ]
    )
    if kind == "keypoint":
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [16]
        cfg.TEST.DETECTIONS_PER_IMAGE = 8
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            std = (2 / parameter[0].numel()) ** 0.5
            is_delta = "bbox_pred" in name or "anchor_deltas" in name
            std *= 0.03 if is_delta else 0.5 if "cls" in name else 1
            parameter.data.copy_(torch.empty(parameter.shape).normal_(0, std))
    if kind == "retinanet":
        model.head.cls_score.bias.zero_()
    randomise_norms(model)
    return model


@pytest.mark.parametrize("kind", STOCK)
def test_stock_detectors(kind, device):
    model = make_stock_model(kind, device=device)
    fast = optimize_for_inference(model)
    images = make_images((96, 128), (64, 100))
    expected, found = model(images), fast(images)
    assert sum(len(e["instances"]) for e in expected) > 10
    check_detections(expected, found)
    for a, b in zip(expected, found):
        assert a.keys() == b.keys()
        if "sem_seg" in a:
            torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.FPN.NORM", "BN", "MODEL.FPN.FUSE_TYPE", "avg"],
        ["MODEL.FPN.NORM", "GN", "MODEL.RPN.CONV_DIMS", "[16, 16]"],
        ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "BN"],
        ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.ROI_MASK_HEAD.NORM", "BN"],
        ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "MODEL.RESNETS.NORM", "SyncBN"],
    ],
)
def test_options_of_the_stock_detectors(opts, device):
    model = make_stock_model("mask", *opts, device=device)
    images = make_images((96, 128))
    check_detections(model(images), optimize_for_inference(model)(images))


@pytest.mark.parametrize("kind", ["mask", "retinanet", "keypoint"])
def test_lower_precision_keeps_boxes_and_scores_in_float32(kind, device):
    model = make_stock_model(kind, device=device)
    fast = optimize_for_inference(model, torch.bfloat16)
    images = make_images((96, 128), (64, 100))
    expected, found = model(images), fast(images)
    for a, b in zip(expected, found):
        a, b = a["instances"], b["instances"]
        assert abs(len(b) - len(a)) <= 0.5 * len(a) + 2
        assert b.scores.dtype == b.pred_boxes.tensor.dtype == torch.float32
        # Random weights make much of a difference in rounding, but not of the best detection.
        if len(a) and len(b):
            assert (a.scores[0] - b.scores[0]).abs() < 0.1
    last = ("objectness_logits", "anchor_deltas", "box_predictor")
    dtypes = {p.dtype for n, p in fast.named_parameters() if not any(x in n for x in last)}
    if kind not in ("keypoint", "c4"):  # which have heads that are not known
        assert dtypes == {torch.bfloat16}
