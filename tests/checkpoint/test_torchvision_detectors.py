"""torchvision's detectors: converted weights compute what the installed torchvision computes."""

import re

import pytest
import torch
import torchvision
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.structures import ImageList

from rsb_d2 import Checkpointer, UserError, model_zoo
from rsb_d2.checkpoint.formats import from_torchvision, recognize, torchvision_differences
from rsb_d2.checkpoint.sources import URLS

MODELS = {
    "frcnn_torchvision": "fasterrcnn_resnet50_fpn",
    "frcnn_torchvision_v2": "fasterrcnn_resnet50_fpn_v2",
    "mask_rcnn_torchvision": "maskrcnn_resnet50_fpn",
    "mask_rcnn_torchvision_v2": "maskrcnn_resnet50_fpn_v2",
    "keypoint_rcnn_torchvision": "keypointrcnn_resnet50_fpn",
    "retinanet_torchvision": "retinanet_resnet50_fpn",
    "retinanet_torchvision_v2": "retinanet_resnet50_fpn_v2",
}
# True heights and widths; padded to multiples of 32, with p6 and p7 of odd sizes as well.
SIZES = [(97, 225), (200, 131)]
COCO_IDS = torch.tensor([c["id"] for c in COCO_CATEGORIES if c["isthing"]])


def make_reference(name):
    """A torchvision model with random weights and statistics, with detections of many classes."""
    torch.manual_seed(0)
    create = getattr(torchvision.models.detection, MODELS[name])
    model = create(weights=None, weights_backbone=None).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif key.endswith(("cls_score.weight", "cls_logits.weight", "bbox_pred.weight")):
                tensor.normal_(0, 0.05)
            elif key.endswith("classification_head.cls_logits.bias"):
                tensor.fill_(-3)
    return model


def drop_untrained_outputs(model):
    """Set the logits of the category ids that do not exist to minus infinity."""
    heads = getattr(model, "roi_heads", None)
    layer = heads.box_predictor.cls_score if heads else model.head.classification_head.cls_logits
    num_outputs = 91
    if len(layer.bias) % num_outputs:
        return  # persons only
    keep = torch.zeros(num_outputs, dtype=torch.bool)
    keep[COCO_IDS] = True
    if heads:
        keep[0] = True  # the background; RetinaNet has none
    with torch.no_grad():
        layer.bias.view(-1, num_outputs)[:, ~keep] = -torch.inf


def load(name, reference, folder, *opts):
    """Load the weights of a torchvision model into the model of a config."""
    torch.save(reference.state_dict(), folder / "weights.pth")
    drop_untrained_outputs(reference)
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    model = build_model(cfg).eval()
    checkpointer = Checkpointer(model)
    checkpointer.load(str(folder / "weights.pth"))
    return model, checkpointer.report


@torch.no_grad()
def detect_by_torchvision(reference, images):
    """Detections on images that are normalized already, in pixels of the input."""
    features = list(reference.backbone(images.tensor).values())
    holder = torchvision.models.detection.image_list.ImageList(images.tensor, images.image_sizes)
    if hasattr(reference, "roi_heads"):
        named = dict(zip(["0", "1", "2", "3", "pool"], features))
        proposals, _ = reference.rpn(holder, named)
        return reference.roi_heads(named, proposals, images.image_sizes)[0]
    outputs = reference.head(features)
    anchors = reference.anchor_generator(holder, features)
    counts = [f.shape[-2] * f.shape[-1] * 9 for f in features]
    split = {k: list(v.split(counts, dim=1)) for k, v in outputs.items()}
    anchors = [list(a.split(counts)) for a in anchors]
    return reference.postprocess_detections(split, anchors, images.image_sizes)


@torch.no_grad()
def detect_by_detectron2(model, images):
    features = model.backbone(images.tensor)
    if hasattr(model, "roi_heads"):
        proposals, _ = model.proposal_generator(images, features)
        return model.roi_heads(images, features, proposals)[0]
    features = [features[f] for f in model.head_in_features]
    return model.forward_inference(images, features, model.head(features))


def in_slow(name):
    """Mask R-CNN includes all of Faster R-CNN."""
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith("frcnn") else name


@pytest.mark.parametrize("name", [in_slow(name) for name in MODELS])
def test_the_same_detections_as_torchvision(name, tmp_path):
    reference, opts = make_reference(name), []
    if name.startswith(("mask", "keypoint")):  # fewer proposals and detections take less time
        reference.rpn._post_nms_top_n["testing"] = 60
        reference.roi_heads.detections_per_img = 20
        opts = ["MODEL.RPN.POST_NMS_TOPK_TEST", 60, "TEST.DETECTIONS_PER_IMAGE", 20]
    model, report = load(name, reference, tmp_path, *opts)
    assert not report.initial and not report.differs
    assert not [n for n in report.unused if not n.endswith("num_batches_tracked")]
    for size in SIZES:
        images = ImageList.from_tensors([torch.randn(3, *size)], 32)
        (expected,) = detect_by_torchvision(reference, images)
        (found,) = detect_by_detectron2(model, images)
        assert len(found) == len(expected["boxes"]) > 5, size
        torch.testing.assert_close(found.scores, expected["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], atol=1e-2, rtol=0)
        ids = COCO_IDS if len(COCO_IDS) > found.pred_classes.max() else torch.tensor([1])
        assert torch.equal(ids[found.pred_classes], expected["labels"])
        if "masks" in expected:
            torch.testing.assert_close(found.pred_masks, expected["masks"], atol=1e-5, rtol=0)
        if "keypoints" in expected:
            torch.testing.assert_close(
                found.pred_keypoints[..., :2], expected["keypoints"][..., :2], atol=1e-2, rtol=0
            )


def with_names_of_old_files(weights):
    """Names from before torchvision 0.13, which the published files of version 1 have."""
    renamed = {}
    for name, tensor in weights.items():
        name = re.sub(r"(rpn\.head\.conv)\.0\.0\.", r"\1.", name)
        name = re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name)
        name = re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)
        name = re.sub(
            r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name
        )
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("name", ["mask_rcnn_torchvision", "retinanet_torchvision"])
def test_names_of_old_files(name):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, MODELS[name])(
            weights=None, weights_backbone=None
        )
    weights = {n: torch.zeros(t.shape) for n, t in model.state_dict().items()}
    old = with_names_of_old_files(weights)
    assert old.keys() != weights.keys()
    model.to_empty(device="cpu").load_state_dict(dict(old))  # torchvision reads these names, too
    assert from_torchvision(old).keys() == from_torchvision(weights).keys()


def test_frozen_norms_have_no_eps():
    """As torchvision's overwrite_eps for its pretrained models."""
    norm = torchvision.ops.FrozenBatchNorm2d(8, eps=0.0)
    norm.running_var.uniform_(1e-4, 1e-3)
    x = torch.randn(2, 8, 4, 4)
    state = {f"backbone.body.bn1.{n}": t for n, t in norm.state_dict().items()}
    state["backbone.body.conv1.weight"] = torch.zeros(8, 3, 7, 7)
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(91, 4)
    state["roi_heads.box_predictor.bbox_pred.weight"] = torch.zeros(364, 4)
    converted = from_torchvision(state)
    ours = torch.nn.BatchNorm2d(8).eval()
    ours.load_state_dict(
        {n: converted[f"backbone.bottom_up.body.bn1.{n}"] for n in norm.state_dict()}, strict=False
    )
    torch.testing.assert_close(ours(x), norm(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["fcos_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_other_detectors_are_refused(kind):
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, kind)(weights=None, weights_backbone=None)
    weights = {n: torch.zeros(t.shape) for n, t in model.state_dict().items()}
    assert recognize(weights).name == "torchvision detector"
    with pytest.raises(UserError, match="Faster, Mask and Keypoint R-CNN and RetinaNet") as error:
        from_torchvision(weights)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "config, missing",
    [("frcnn_rsb_1x", "ROI_BOX_HEAD.POOLER_TYPE"), ("retinanet_rsb_1x", "P6_IN_FEATURE p5")],
)
def test_a_config_that_computes_something_else_is_reported(config, missing):
    name = "retinanet_torchvision" if config.startswith("retinanet") else "frcnn_torchvision"
    with torch.device("meta"):
        reference = getattr(torchvision.models.detection, MODELS[name])(
            weights=None, weights_backbone=None
        )
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    lines = torchvision_differences(model, from_torchvision(reference.state_dict()))
    assert any(missing in line for line in lines)
    assert "MODEL.ANCHOR_GENERATOR.NAME TorchvisionAnchorGenerator" in lines


def test_addresses_are_those_of_torchvision():
    detection = torchvision.models.detection
    weights = {
        "frcnn_torchvision": detection.FasterRCNN_ResNet50_FPN_Weights,
        "frcnn_torchvision_v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights,
        "mask_rcnn_torchvision": detection.MaskRCNN_ResNet50_FPN_Weights,
        "mask_rcnn_torchvision_v2": detection.MaskRCNN_ResNet50_FPN_V2_Weights,
        "keypoint_rcnn_torchvision": detection.KeypointRCNN_ResNet50_FPN_Weights,
        "retinanet_torchvision": detection.RetinaNet_ResNet50_FPN_Weights,
        "retinanet_torchvision_v2": detection.RetinaNet_ResNet50_FPN_V2_Weights,
    }
    published = {row.name: row for row in model_zoo.list()}
    for name, enum in weights.items():
        assert URLS[name] == enum.COCO_V1.url
        metrics = enum.COCO_V1.meta["_metrics"]["COCO-val2017"]
        assert published[name].box_ap == metrics["box_map"]
        assert published[name].mask_ap == metrics.get("mask_map")
