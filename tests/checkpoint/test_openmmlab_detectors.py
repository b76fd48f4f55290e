"""The published detectors: all of their parameters are loaded, and compute what they did there.

The published files are stood in for by weights made of names and shapes (standin_weights.py), in
the layout of OpenMMLab's files. tests/data holds the parameter lists and what MMDetection 3.3
computed with such weights on ``make_image()``: faster_rcnn.npz with its own operators, the three
others with torchvision's RoIAlign and NMS in their place.
"""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from rsb_d2 import Checkpointer, UserError, model_zoo
from rsb_d2.checkpoint.convert import convert_file
from rsb_d2.checkpoint.formats.openmmlab_detectors import (
    differences,
    from_openmmlab,
    is_openmmlab_detector,
)
from tests.helpers.paths import PUBLISHED_DETECTORS
from tests.helpers.standin_weights import make_image, make_state_dict

DATA = PUBLISHED_DETECTORS
CONFIGS = {
    "faster_rcnn": "frcnn_rsb_1x",
    "mask_rcnn": "mask_rcnn_rsb_1x",
    "cascade_mask_rcnn": "cascade_mask_rcnn_rsb_1x",
    "retinanet": "retinanet_rsb_1x",
}


def standin(name):
    arrays = make_state_dict(DATA / f"{name}.json")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def save_as_openmmlab(path, weights):
    meta = {"mmdet_version": "2.18.0", "CLASSES": ("person", "bicycle"), "epoch": 12, "iter": 87960}
    torch.save({"meta": meta, "state_dict": weights}, path)
    return str(path)


def build(name, *opts):
    cfg = model_zoo.get_config(CONFIGS[name])
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return build_model(cfg).eval()


class Detector:
    """A detector with its stand-in weights, and what it computes of the image."""

    def __init__(self, name, folder):
        self.name, self.weights = name, standin(name)
        self.model = build(name)
        checkpointer = Checkpointer(self.model)
        checkpointer.load(save_as_openmmlab(folder / f"{name}.pth", self.weights))
        self.report = checkpointer.report
        image = torch.from_numpy(make_image().transpose(2, 0, 1).copy())
        inputs = [{"image": image, "height": 256, "width": 320}]
        with torch.no_grad():
            self.images = self.model.preprocess_image(inputs)
            self.res = self.model.backbone.bottom_up(self.images.tensor)
            self.features = self.model.backbone(self.images.tensor)
            self.instances = self.model(inputs)[0]["instances"]

    def reference(self):
        return np.load(DATA / f"{self.name}.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("openmmlab")


@pytest.fixture(scope="module")
def cascade(folder):
    return Detector("cascade_mask_rcnn", folder)


@pytest.fixture(scope="module")
def retinanet(folder):
    return Detector("retinanet", folder)


@pytest.fixture(scope="module", params=CONFIGS)
def detector(request, folder):
    if request.param == "cascade_mask_rcnn":
        return request.getfixturevalue("cascade")
    if request.param == "retinanet":
        return request.getfixturevalue("retinanet")
    return Detector(request.param, folder)


# ---- the four detectors against MMDetection ----


def test_nothing_is_missing_and_nothing_unused(detector):
    report = detector.report
    assert report.format_name == "OpenMMLab detector"
    assert report.initial == [] and report.unused == [] and report.other_shape == []
    assert len(report.loaded) == len(detector.weights)
    assert report.differs == []


def test_all_detections_are_those_of_mmdetection(detector):
    found, reference = detector.instances, detector.reference()
    assert len(found) == 100
    assert (found.pred_classes.numpy() == reference["classes"]).all()
    assert np.abs(found.scores.numpy() - reference["scores"]).max() < 1e-5
    assert np.abs(found.pred_boxes.tensor.numpy() - reference["boxes"]).max() < 1e-3
    if "masks" in reference:
        masks = np.unpackbits(reference["masks"], axis=-1).astype(bool)
        assert (found.pred_masks.numpy() == masks).all()


@pytest.mark.parametrize("detector", ["faster_rcnn"], indirect=True)
def test_features_and_rpn_outputs_are_those_of_mmdetection(detector):
    reference = detector.reference()
    with torch.no_grad():
        logits, deltas = detector.model.proposal_generator.rpn_head(
            [detector.features[f] for f in ("p2", "p3", "p4", "p5", "p6")]
        )
    x = detector.images.tensor
    assert np.abs(x[0, :, ::16, ::16].numpy() - np.squeeze(reference["input"])).max() < 1e-5
    for i, (level, step) in enumerate({"2": 8, "3": 4, "4": 2, "5": 1, "6": 1}.items()):
        found = {
            f"p{level}": detector.features[f"p{level}"][:, ::16],
            f"rpn_logits_p{level}": logits[i],
            f"rpn_deltas_p{level}": deltas[i],
        }
        if level != "6":
            found[f"res{level}"] = detector.res[f"res{level}"][:, ::32]
        for key, tensor in found.items():
            expected = reference[key]
            difference = tensor[0, :, ::step, ::step].numpy() - np.squeeze(expected)
            # The backbone's are not near unit scale as the pyramid's are.
            scale = max(1, np.abs(expected).max()) if key.startswith("res") else 1
            assert np.abs(difference).max() < 1e-5 * scale, key


# ---- recognition ----


def test_other_detectors_of_openmmlab_are_refused(tmp_path):
    weights = standin("faster_rcnn")
    weights["neck.downsample_convs.0.conv.weight"] = torch.zeros(256, 256, 3, 3)  # PAFPN
    assert is_openmmlab_detector(weights)
    path = save_as_openmmlab(tmp_path / "pafpn.pth", weights)
    with pytest.raises(UserError, match="another kind.*downsample_convs"):
        Checkpointer(build("faster_rcnn")).load(path)
    assert not is_openmmlab_detector({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_other_numbers_of_classes_are_converted():
    weights = standin("retinanet")
    weights["bbox_head.retina_cls.weight"] = torch.randn(9 * 5, 256, 3, 3)
    weights["bbox_head.retina_cls.bias"] = torch.arange(9.0).repeat_interleave(5)
    converted = from_openmmlab(weights)
    # One row of five classes for each anchor, here the number of the anchor in MMDetection.
    by_anchor = converted["head.cls_score.bias"].reshape(9, 5)
    assert by_anchor[:, 0].tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert (by_anchor == by_anchor[:, :1]).all()


def test_a_model_that_computes_something_else_is_told(folder):
    opts = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.P7_RELU", True]
    checkpointer = Checkpointer(build("retinanet", *opts))
    path = save_as_openmmlab(folder / "retinanet.pth", standin("retinanet"))
    checkpointer.load(path)
    lines = ["MODEL.META_ARCHITECTURE OpenMMLabRetinaNet", "MODEL.RETINANET.P7_RELU False"]
    assert checkpointer.report.differs == lines
    assert all(line in str(checkpointer.report) for line in lines)
    weights = ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[10.0] * 4, [20.0] * 4, [30.0] * 4]]
    model = build("cascade_mask_rcnn", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *weights)
    found = differences(model, from_openmmlab(standin("cascade_mask_rcnn")))
    assert [line.split()[0].split(".")[-1] for line in found] == ["NAME", "BBOX_REG_WEIGHTS"]


def make_targets(masks=False):
    """An image's objects: two boxes, of classes 3 and 5."""
    targets = Instances((256, 320))
    targets.gt_boxes = Boxes(torch.tensor([[40.0, 60, 150, 140], [200.0, 100, 290, 220]]))
    targets.gt_classes = torch.tensor([3, 5])
    if masks:
        bitmap = torch.zeros(2, 256, 320, dtype=torch.bool)
        bitmap[0, 60:140, 40:150] = True
        bitmap[1, 100:220, 200:290] = True
        targets.gt_masks = BitMasks(bitmap)
    return targets


# What MMDetection 3.3 computed in training mode, with all proposals sampled in every stage.
LOSSES = {
    "retinanet": {"loss_cls": 2593.45581, "loss_box_reg": 0.67954},
    "cascade_mask_rcnn": {
        "loss_cls_stage0": 4.57153,
        "loss_box_reg_stage0": 0.01675,
        "loss_mask_stage0": 0.70601,
        "loss_cls_stage1": 3.89579,
        "loss_box_reg_stage1": 0.00233,
        "loss_mask_stage1": 0.33811,
        "loss_cls_stage2": 2.43151,
        "loss_box_reg_stage2": 0.00101,
        "loss_mask_stage2": 0.17703,
    },
}


@pytest.mark.parametrize("detector", LOSSES, indirect=True)
def test_losses_are_those_of_mmdetection(detector, monkeypatch):
    model = detector.model
    if detector.name == "cascade_mask_rcnn":
        monkeypatch.setattr(model.roi_heads, "batch_size_per_image", 100000)
    image = torch.from_numpy(make_image().transpose(2, 0, 1).copy())
    model.train()
    with torch.no_grad(), EventStorage():
        losses = model([{"image": image, "instances": make_targets(masks=True)}])
    model.eval()
    for name, expected in LOSSES[detector.name].items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-5, abs=1.1e-5), name


# ---- RetinaNet, part by part ----


def test_p7_has_no_relu_before_it(retinanet):
    weights, res5 = retinanet.weights, retinanet.res["res5"]

    def conv(x, i):
        prefix = f"neck.fpn_convs.{i}.conv."
        return F.conv2d(x, weights[prefix + "weight"], weights[prefix + "bias"], 2, 1)

    p6 = conv(res5, 3)
    assert (p6 < 0).any()
    assert torch.equal(retinanet.features["p6"], p6)
    assert torch.equal(retinanet.features["p7"], conv(p6, 4))
    stock = build("retinanet", "MODEL.RETINANET.P7_RELU", True)
    stock.load_state_dict(retinanet.model.state_dict(), strict=False)
    with torch.no_grad():
        p7 = stock.backbone(retinanet.images.tensor)["p7"]
    assert torch.allclose(p7, conv(p6.relu(), 4), atol=1e-5)


def mmdetection_cell_anchors(stride):
    """(9, 4), MMDetection's AnchorGenerator: by ratio, then by size."""
    ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()[:, None]
    scales = torch.tensor([4 * 2 ** (i / 3) for i in range(3)])[None, :]
    w, h = (stride / ratios * scales).flatten(), (stride * ratios * scales).flatten()
    return torch.stack([-w, -h, w, h], dim=1) / 2


def test_each_anchor_has_its_own_logits_and_deltas(retinanet):
    weights, features = retinanet.weights, retinanet.features
    order = [3 * ratio + size for size in range(3) for ratio in range(3)]
    anchors = retinanet.model.anchor_generator([features[f"p{i}"] for i in range(3, 8)])
    with torch.no_grad():
        all_logits, all_deltas = retinanet.model.head([features["p5"]] * 5)

    def head(branch, last):
        x = features["p5"]
        for i in range(4):
            prefix = f"bbox_head.{branch}_convs.{i}.conv."
            x = F.relu(F.conv2d(x, weights[prefix + "weight"], weights[prefix + "bias"], 1, 1))
        prefix = f"bbox_head.{last}."
        x = F.conv2d(x, weights[prefix + "weight"], weights[prefix + "bias"], 1, 1)
        return x[0].unflatten(0, (9, -1))

    found = all_logits[0][0].unflatten(0, (9, -1))
    assert torch.allclose(found, head("cls", "retina_cls")[order], atol=1e-5)
    found = all_deltas[0][0].unflatten(0, (9, -1))
    assert torch.allclose(found, head("reg", "retina_reg")[order], atol=1e-5)
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        first_cell = anchors[level].tensor[:9]
        assert torch.allclose(first_cell, mmdetection_cell_anchors(stride)[order], atol=1e-3)


def test_boxes_are_clipped_before_nms(retinanet):
    # Half of each is outside an image of 100 x 100. Of the whole boxes the IoU is 0.43, of what is
    # inside 0.6; and the third is outside altogether.
    anchors = Boxes(
        torch.tensor([[-100.0, 10, 50, 60], [-20.0, 10, 50, 60], [-90.0, 0, -10, 20], [0, 0, 1, 1]])
    )
    scores = torch.zeros(4, 80)
    scores[:3, 7] = torch.tensor([0.9, 0.8, 0.7])
    none = [Boxes(torch.zeros(0, 4)), torch.zeros(0, 80), torch.zeros(0, 4)]
    arguments = [[anchors, none[0]], [scores, none[1]], [torch.zeros(4, 4), none[2]], (100, 100)]
    found = retinanet.model.inference_single_image(*arguments)
    assert found.pred_boxes.tensor.tolist() == [[0, 10, 50, 60]]
    assert found.scores.tolist() == pytest.approx([0.9])
    stock = type(retinanet.model).__mro__[1].inference_single_image(retinanet.model, *arguments)
    assert len(stock) == 3


def test_retinanet_losses_are_divided_by_the_positives_of_the_batch(retinanet):
    """Focal loss and L1 of MMDetection's RetinaHead, written out."""
    model = retinanet.model
    features = [retinanet.features[f"p{i}"] for i in range(3, 8)]
    targets = make_targets()
    with torch.no_grad(), EventStorage():
        logits, deltas = model.head(features)
        for _ in range(2):  # the second batch does not remember the first
            losses = model.forward_training(None, features, [logits, deltas], [targets])
        labels, boxes = model.label_anchors(model.anchor_generator(features), [targets])
    positive = (labels[0] >= 0) & (labels[0] < 80)
    anchors = Boxes.cat(model.anchor_generator(features)).tensor
    flat = [
        [x[0].permute(1, 2, 0).reshape(-1, k) for x in p] for p, k in ((logits, 80), (deltas, 4))
    ]
    x, found_deltas = (torch.cat(p) for p in flat)
    target = torch.zeros_like(x)
    target[positive, labels[0][positive]] = 1
    p = x.sigmoid()
    weight = (0.25 * target + 0.75 * (1 - target)) * (p - target).abs() ** 2
    focal = F.binary_cross_entropy_with_logits(x, target, reduction="none") * weight
    expected = focal[labels[0] >= 0].sum() / positive.sum()
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-4)

    a, b = anchors[positive], boxes[0][positive]
    centre, size = (a[:, :2] + a[:, 2:]) / 2, a[:, 2:] - a[:, :2]
    shift = ((b[:, :2] + b[:, 2:]) / 2 - centre) / size
    scale = ((b[:, 2:] - b[:, :2]) / size).log()
    l1 = (found_deltas[positive] - torch.cat([shift, scale], dim=1)).abs().sum() / positive.sum()
    assert losses["loss_box_reg"].item() == pytest.approx(l1.item(), rel=1e-4)


# ---- Cascade Mask R-CNN, part by part ----

STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]


def cascade_by_hand(detector, boxes):
    """The boxes and the scores of three stages, by MMDetection's formulas and names.

    Every box has to be small, so that all the features are of p2.
    """
    weights, p2 = detector.weights, detector.features["p2"]
    all_logits = []
    for stage, stds in enumerate(STDS):
        prefix = f"roi_head.bbox_head.{stage}."
        layers = {k[len(prefix) :]: w for k, w in weights.items() if k.startswith(prefix)}
        x = roi_align(p2, [boxes], 7, 1 / 4, -1, aligned=True).flatten(1)
        for i in range(2):
            x = F.relu(
                F.linear(x, layers[f"shared_fcs.{i}.weight"], layers[f"shared_fcs.{i}.bias"])
            )
        all_logits.append(F.linear(x, layers["fc_cls.weight"], layers["fc_cls.bias"]))
        d = F.linear(x, layers["fc_reg.weight"], layers["fc_reg.bias"]) * torch.tensor(stds)
        size = boxes[:, 2:] - boxes[:, :2]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + d[:, :2] * size
        half = size * d[:, 2:].exp() / 2
        boxes = torch.cat([centre - half, centre + half], dim=1)
        boxes = torch.stack(
            [boxes[:, i].clamp(0, limit) for i, limit in enumerate((320, 256, 320, 256))], dim=1
        )
    return boxes, (sum(all_logits) / 3).softmax(dim=1)


def test_cascade_averages_logits_and_scales_deltas_as_mmdetection(cascade):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([250.0, 190.0])
    boxes = torch.cat([corners, corners + 20 + 40 * torch.rand(40, 2, generator=generator)], dim=1)
    proposals = Instances((256, 320), proposal_boxes=Boxes(boxes))
    heads = cascade.model.roi_heads
    with torch.no_grad():
        found = heads._forward_box(cascade.features, [proposals])[0]
        expected_boxes, scores = cascade_by_hand(cascade, boxes)
    rows, classes = (scores[:, :-1] > 0.05).nonzero(as_tuple=True)
    kept = batched_nms(expected_boxes[rows], scores[rows, classes], classes, 0.5)[:100]
    assert len(kept) > 20
    assert torch.equal(found.pred_classes, classes[kept])
    assert torch.allclose(found.scores, scores[rows, classes][kept], atol=1e-5)
    assert torch.allclose(found.pred_boxes.tensor, expected_boxes[rows][kept], atol=1e-3)


def test_cascade_averages_the_masks_of_three_heads(cascade):
    boxes = cascade.reference()["boxes"]
    small = (np.diff(boxes.reshape(-1, 2, 2), axis=1)[:, 0] < 70).all(axis=1)  # of p2 all
    boxes = torch.from_numpy(boxes[small])[:8]
    classes = torch.arange(len(boxes))
    instances = Instances((256, 320), pred_boxes=Boxes(boxes), pred_classes=classes)
    with torch.no_grad():
        cascade.model.roi_heads.forward_with_given_boxes(cascade.features, [instances])
    pooled = roi_align(cascade.features["p2"], [boxes], 14, 1 / 4, -1, aligned=True)
    masks = []
    for stage in range(3):
        prefix = f"roi_head.mask_head.{stage}."
        layers = {k[len(prefix) :]: w for k, w in cascade.weights.items() if k.startswith(prefix)}
        x = pooled
        for i in range(4):
            w, b = (layers[f"convs.{i}.conv.{p}"] for p in ("weight", "bias"))
            x = F.relu(F.conv2d(x, w, b, 1, 1))
        x = F.relu(F.conv_transpose2d(x, layers["upsample.weight"], layers["upsample.bias"], 2))
        x = F.conv2d(x, layers["conv_logits.weight"], layers["conv_logits.bias"])
        masks.append(x[classes, classes].sigmoid())
    assert len(boxes) > 3
    assert torch.allclose(instances.pred_masks[:, 0], sum(masks) / 3, atol=1e-5)


@pytest.fixture
def training_cascade(cascade):
    heads = cascade.model.roi_heads
    heads.train()
    heads.batch_size_per_image = 64
    yield heads
    heads.eval()
    heads.batch_size_per_image = 512
    heads.stage_loss_weights = [1.0, 0.5, 0.25]
    heads.zero_grad()


def make_proposals(count=300):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([260.0, 200.0])
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(count, 2, generator=generator)], 1)
    near = make_targets().gt_boxes.tensor.repeat(20, 1)
    near = near + 4 * torch.randn(near.shape, generator=generator)
    proposals = Instances((256, 320), proposal_boxes=Boxes(torch.cat([near, boxes])))
    proposals.objectness_logits = torch.zeros(len(proposals))
    return proposals


def test_every_stage_of_the_cascade_samples_and_trains(cascade, training_cascade, monkeypatch):
    heads, sampled = training_cascade, []
    original = heads.label_and_sample_proposals

    def record(proposals, targets):
        result = original(proposals, targets)
        sampled.append((heads.proposal_matcher.thresholds[1], proposals[0], result[0]))
        return result

    monkeypatch.setattr(heads, "label_and_sample_proposals", record)
    targets = make_targets(masks=True)
    with EventStorage() as storage:
        torch.manual_seed(0)
        _, losses = heads(cascade.images, cascade.features, [make_proposals()], [targets])
    names = [
        f"{name}_stage{i}" for i in range(3) for name in ("loss_cls", "loss_box_reg", "loss_mask")
    ]
    assert sorted(losses) == sorted(names)
    assert [threshold for threshold, _, _ in sampled] == [0.5, 0.6, 0.7]
    assert "stage2/roi_head/num_fg_samples" in storage.latest()
    for stage, (_, given, result) in enumerate(sampled):
        positive = result.gt_classes < 80
        assert len(result) <= 64 and 0 < positive.sum() <= 16
        if stage:  # what the sampled ground truth became is dropped; 64 were sampled before
            assert 60 <= len(given) < 64
    sum(losses.values()).backward()
    for head in (*heads.mask_head, *heads.box_head, *heads.box_predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    heads.stage_loss_weights = [2.0, 0.0, 1.0]
    with EventStorage():
        torch.manual_seed(0)
        _, weighted = heads(cascade.images, cascade.features, [make_proposals()], [targets])
    for name, loss in losses.items():
        factor = {"0": 2, "1": 0, "2": 4}[name[-1]]  # published: 1, 0.5, 0.25
        assert weighted[name].item() == pytest.approx(factor * loss.item(), rel=1e-4)


def test_cascade_trains_on_an_image_without_objects(cascade, training_cascade):
    targets = make_targets(masks=True)[:0]
    with EventStorage():
        _, losses = training_cascade(
            cascade.images, cascade.features, [make_proposals(50)], [targets]
        )
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[f"loss_mask_stage{i}"] == 0 for i in range(3))


def test_cascade_needs_a_weight_for_each_stage():
    with pytest.raises(UserError, match="STAGE_LOSS_WEIGHTS"):
        build("cascade_mask_rcnn", "MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS", [1.0, 0.5])


# ---- written out in this project's format ----


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_convert_weights_writes_a_detector_of_this_project(retinanet, folder, ending):
    path = save_as_openmmlab(folder / "theirs.pth", retinanet.weights)
    output = str(folder / f"ours{ending}")
    conversion = convert_file(path, output, "rsb_d2")
    assert conversion.format_name == "OpenMMLab detector" and conversion.dropped == []
    checkpointer = Checkpointer(build("retinanet"))
    checkpointer.load(output)
    report = checkpointer.report
    assert report.format_name == "rsb_d2 detector"
    assert report.initial == [] == report.unused
    expected = retinanet.model.state_dict()
    found = checkpointer.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_convert_weights_has_no_detector_to_make_of_a_backbone(folder):
    path = str(folder / "backbone.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(UserError, match="holds no detector"):
        convert_file(path, str(folder / "detector.pth"), "rsb_d2")
    assert not (folder / "detector.pth").exists()
