"""YAML files of Detectron2's zoo in train_net.py, with the name of the backbone alone."""

import argparse
import json
import re

import pytest

import train_net
from rsb_d2 import UserError
from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data
from rsb_d2.config.checks import check_values
from rsb_d2.config.loading import load_config
from rsb_d2.config.setup import setup
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.zoo_model import FEW, ROOT

FPN = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]
C4 = ["MODEL.BACKBONE.NAME", "build_timm_c4_backbone"]
WEIGHTS = ["MODEL.WEIGHTS", "timm://resnet50.a1_in1k"]


def arguments(name, opts):
    return argparse.Namespace(
        config_file=str(ROOT / name), opts=[str(o) for o in opts], eval_only=False, resume=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo_training")
    make_sample_data(str(folder / "sample"), num_train=2, num_val=1, image_size=64)
    add_to_cache(folder / "hub", "resnet50.a1_in1k", make_weights("resnet50"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, backbone, task",
    [
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", FPN, "box_proposals"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", C4, "segm"),
    ],
)
def test_it_trains_and_evaluates(name, backbone, task, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    sample = folder / "sample"
    sets = [
        [
            f"{tmp_path.name}_{part}",
            str(sample / "annotations" / f"{part}.json"),
            str(sample / part),
        ]
        for part in ("train", "val")
    ]
    opts = [*backbone, *WEIGHTS, *FEW, "OUTPUT_DIR", tmp_path / "output", "DATASETS.COCO_JSON"]
    opts += [sets, "DATASETS.TRAIN", [sets[0][0]], "DATASETS.TEST", [sets[1][0]]]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", len(CLASS_NAMES), "MODEL.ROI_BOX_HEAD.FC_DIM", 8]
    opts += ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 1]
    opts += ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "DATALOADER.NUM_WORKERS", 0]
    opts += ["TEST.EVAL_PERIOD", 1, "SOLVER.BEST_METRIC", ""]
    train_net.main(arguments(name, opts))
    metrics = [json.loads(x) for x in (tmp_path / "output" / "metrics.json").open()]
    found = {key.partition("/")[0] for line in metrics for key in line}
    assert {"total_loss", task} <= found
    config = (tmp_path / "output" / "config.yaml").read_text()
    assert "NAME: resnet50" in config and "NORM: FrozenBN" in config
    log = (tmp_path / "output" / "log.txt").read_text()
    assert re.search(r"MODEL.TIMM.NAME +'' +'resnet50' +the network is timm's", log)


@pytest.mark.parametrize(
    "name, opts, line",
    [
        (
            "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
            FPN,
            "R-101.pkl is a Caffe2 model, .* MODEL.WEIGHTS timm://resnet101.a1_in1k$",
        ),
        (
            "Cityscapes/mask_rcnn_R_50_FPN.yaml",
            FPN,
            "pkl is a detector on Detectron2's own ResNet.* MODEL.WEIGHTS timm://resnet50.a1_in1k$",
        ),
        (
            "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
            [*FPN, *WEIGHTS],
            "timm://resnet50.a1_in1k is of resnet50, but MODEL.TIMM.NAME is resnet101",
        ),
        (
            "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
            [*FPN, *WEIGHTS],
            "MODEL.RETINANET.IN_FEATURES: .*build_timm_fpn_backbone has no p7, only p3",
        ),
    ],
)
def test_refused_before_anything_is_written(name, opts, line, folder, tmp_path):
    sample = folder / "sample"
    data = [["zoo_line", str(sample / "annotations" / "val.json"), str(sample / "val")]]
    opts = [*opts, "OUTPUT_DIR", tmp_path / "output", "MODEL.DEVICE", "cpu"]
    opts += ["DATASETS.COCO_JSON", data, "DATASETS.TRAIN", ["zoo_line"], "DATASETS.TEST", []]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", len(CLASS_NAMES)]
    opts += ["MODEL.RETINANET.NUM_CLASSES", len(CLASS_NAMES)]
    with pytest.raises(UserError, match=line) as error:
        setup(arguments(name, opts))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "opts, line",
    [
        (
            ["MODEL.LOAD_PROPOSALS", False],
            "PrecomputedProposals, .*MODEL.LOAD_PROPOSALS True",
        ),
        (["DATASETS.PROPOSAL_FILES_TRAIN", ()], "DATASETS.PROPOSAL_FILES_TRAIN has 0 files, .* 1"),
        (["DATASETS.TEST", ("a", "b")], "DATASETS.PROPOSAL_FILES_TEST has 1 files, .* 2"),
    ],
)
def test_proposals_that_are_not_there(opts, line):
    path = str(ROOT / "COCO-Detection" / "fast_rcnn_R_50_FPN_1x.yaml")
    check_values(load_config(path, FPN), eval_only=False)
    with pytest.raises(UserError, match=line):
        check_values(load_config(path, [*FPN, *opts]), eval_only=False)
