"""The published detectors: all parameters are loaded, and results equal MMDetection's.

The published files are stood in for by weights made of names and shapes (standin_weights.py), in
the layout of OpenMMLab's files. tests/data holds the parameter lists and what MMDetection 3.3
computed with such weights on ``make_image()``: faster_rcnn.npz with its own operators, the three
others with torchvision's RoIAlign and NMS in their place.
"""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rsb_d2 import Checkpointer, UserError, model_zoo
from rsb_d2.checkpoint.convert import convert_file
from rsb_d2.checkpoint.formats import (
    from_openmmlab,
    is_openmmlab_detector,
    openmmlab_differences,
)
from tests.helpers.weights.openmmlab import (
    CONFIGS,
    Detector,
    blank,
    build,
    make_targets,
    save_as_openmmlab,
)
from tests.helpers.weights.standin_weights import make_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("openmmlab")


@pytest.fixture(scope="module", params=CONFIGS)
def detector(request, folder):
    if request.param == "retinanet":
        return request.getfixturevalue("retinanet")
    return Detector(request.param, folder)


@pytest.fixture(scope="module")
def retinanet(folder):
    return Detector("retinanet", folder)


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
        # A pixel at the threshold to rounding falls on this side or that, as the processor sums.
        assert (found.pred_masks.numpy() != masks).sum() <= 1e-3 * masks.sum()


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


@pytest.mark.parametrize(
    "detector",
    ["retinanet", pytest.param("cascade_mask_rcnn", marks=pytest.mark.slow)],
    indirect=True,
)
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


# ---- recognition ----


def test_other_detectors_of_openmmlab_are_refused(tmp_path):
    weights = blank("faster_rcnn")
    weights["neck.downsample_convs.0.conv.weight"] = torch.zeros(256, 256, 3, 3)  # PAFPN
    assert is_openmmlab_detector(weights)
    path = save_as_openmmlab(tmp_path / "pafpn.pth", weights)
    with pytest.raises(UserError, match="another kind.*downsample_convs"):
        Checkpointer(build("faster_rcnn")).load(path)
    assert not is_openmmlab_detector({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_other_numbers_of_classes_are_converted():
    weights = blank("retinanet")
    weights["bbox_head.retina_cls.weight"] = torch.randn(9 * 5, 256, 3, 3)
    weights["bbox_head.retina_cls.bias"] = torch.arange(9.0).repeat_interleave(5)
    converted = from_openmmlab(weights)
    # One row of five classes for each anchor, here the number of the anchor in MMDetection.
    by_anchor = converted["head.cls_score.bias"].reshape(9, 5)
    assert by_anchor[:, 0].tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert (by_anchor == by_anchor[:, :1]).all()


def test_models_that_compute_something_else_are_reported(folder):
    opts = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.P7_RELU", True]
    checkpointer = Checkpointer(build("retinanet", *opts))
    path = save_as_openmmlab(folder / "retinanet.pth", blank("retinanet"))
    checkpointer.load(path)
    lines = ["MODEL.META_ARCHITECTURE OpenMMLabRetinaNet", "MODEL.RETINANET.P7_RELU False"]
    assert checkpointer.report.differs == lines
    assert all(line in str(checkpointer.report) for line in lines)
    weights = ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[10.0] * 4, [20.0] * 4, [30.0] * 4]]
    model = build("cascade_mask_rcnn", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *weights)
    found = openmmlab_differences(model, from_openmmlab(blank("cascade_mask_rcnn")))
    assert [line.split()[0].split(".")[-1] for line in found] == ["NAME", "BBOX_REG_WEIGHTS"]


@pytest.mark.parametrize(
    "name, twin",
    [
        ("frcnn_tv2_1x", "frcnn_rsb_1x"),
        ("frcnn_tv_3x", "frcnn_rsb_1x"),
        ("mask_rcnn_tv_3x", "mask_rcnn_rsb_1x"),
        ("cascade_mask_rcnn_tv_3x", "cascade_mask_rcnn_rsb_1x"),
        ("retinanet_tv_3x", "retinanet_rsb_1x"),
    ],
)
def test_detectors_from_older_weights_are_the_same_models(name, twin):
    """MMDetection's configs differ in weights, optimizer, schedule and training images only."""
    cfg, expected = (model_zoo.get_config(n).MODEL for n in (name, twin))
    expected.WEIGHTS = cfg.WEIGHTS
    assert cfg == expected


def test_a_detector_on_resnet101(folder):
    cfg = model_zoo.get_config("frcnn_tv_resnet101_3x")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg)
    weights = blank("faster_rcnn")
    for name, tensor in blank("faster_rcnn").items():  # layer3 has 23 blocks instead of 6
        if name.startswith("backbone.layer3.5."):
            for block in range(6, 23):
                weights[name.replace("layer3.5.", f"layer3.{block}.")] = tensor
    checkpointer = Checkpointer(model)
    checkpointer.load(save_as_openmmlab(folder / "r101.pth", weights))
    assert checkpointer.report.initial == [] == checkpointer.report.unused


# ---- written out in this project's format ----


@pytest.mark.parametrize("ending", [pytest.param(".pth", marks=pytest.mark.slow), ".safetensors"])
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
