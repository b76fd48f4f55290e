"""Keypoints of one's own COCO file: their names, flips and figures, from the config alone."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import train_net
from rsb_d2 import UserError
from rsb_d2.config import load_config, resolve
from rsb_d2.config.checks import check_keypoints, log_keypoint_notes
from rsb_d2.data.keypoints import flip_pairs, unpaired_names
from rsb_d2.data.mapper import CheckedDatasetMapper
from rsb_d2.evaluation.coco_evaluation import keypoint_sigmas
from rsb_d2.predictor import to_coco
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.coco_files import annotation
from tests.helpers.paths import CONFIGS

WIDTH, HEIGHT = 100, 80
NAMES = ["tip", "left_wing", "right_wing", "tail"]
SMALL = [
    *("MODEL.KEYPOINT_ON", "True", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.DEVICE", "cpu"),
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", ""),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "SEED", "1"),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.MIN_SIZE_TEST", "80", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1"),
    *("SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "2", "TEST.VAL_LOSS", "True"),
    *("TEST.DETECTIONS_PER_IMAGE", "5"),
]


def points(x, y, w, h):
    """In fractions of a pixel, of each visibility."""
    return [x + 0.5, y + 0.25, 2, x + w / 4, y + h / 2, 1, x + w - 2, y + h / 2, 2, 0, 0, 0]


def content(names=NAMES):
    """A category with keypoints and one without; objects without any in both."""
    boxes = [[10, 10, 40, 30], [50, 30, 40, 40], [0, 0, 90, 70], [5, 5, 32, 32], [20, 9, 50, 50]]
    annotations = []
    for i, box in enumerate(boxes):
        annotations.append(annotation(i + 1, 10 * (i + 1), 3, box, keypoints=points(*box)))
    annotations.append(annotation(6, 10, 3, [60, 50, 30, 20]))
    annotations.append(annotation(7, 20, 7, [5, 6, 30, 20]))
    return dict(
        images=[
            dict(id=i, file_name=f"{i}.jpg", width=WIDTH, height=HEIGHT) for i in range(10, 60, 10)
        ],
        categories=[
            dict(id=7, name="cloud"),
            dict(id=3, name="bird", keypoints=names, skeleton=[[1, 2], [1, 3], [1, 9]]),
        ],
        annotations=annotations,
    )


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A function that writes data and registers it; returns the config, resolved."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for i in range(10, 60, 10):
        pixels = np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.jpg")

    def write(change=None, *opts):
        whole = content()
        whole = (change(whole) or whole) if change else whole
        (tmp_path / "mine.json").write_text(json.dumps(whole))
        return opts_of(tmp_path, *opts)

    def opts_of(folder, *opts):
        entries = [[n, str(folder / "mine.json"), str(folder / "images")] for n in ("mine", "val")]
        return [
            *("DATASETS.COCO_JSON", str(entries), "DATASETS.TRAIN", "('mine',)"),
            *("DATASETS.TEST", "('val',)", "OUTPUT_DIR", str(folder / "output"), *SMALL, *opts),
        ]

    with catalogs_kept():
        yield write


def make_cfg(opts):
    cfg = load_config(str(CONFIGS / "frcnn_rsb_sample.yaml"), opts)
    resolve(cfg)
    check_keypoints(cfg)
    log_keypoint_notes(cfg, eval_only=False)
    return cfg


# ---- from YAML alone ----


def test_a_training_needs_only_the_config(data, tmp_path):
    """With channels-last weights, validation loss, flips and pictures; pycocotools' figures."""
    opts = data()
    config = ["--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml"), *opts]
    train_net.main(default_argument_parser().parse_args(config))
    output = tmp_path / "output"
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert any(line.get("loss_keypoint", 0) > 0 for line in lines)
    assert any(line.get("val_loss_keypoint", 0) > 0 for line in lines)
    assert (output / "detections.png").exists()
    saved = load_config(str(output / "config.yaml"), [])
    assert saved.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 4 and saved.MODEL.CHANNELS_LAST

    truth = content()
    for a in truth["annotations"]:
        a.setdefault("keypoints", [0] * 12)
        a["num_keypoints"] = sum(v > 0 for v in a["keypoints"][2::3])
    found = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert all(len(f["keypoints"]) == 12 for f in found)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array([0.067] * 4)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = [100 * v if v >= 0 else np.nan for v in evaluation.stats[:5]]
    trained = {name: value for line in lines for name, value in line.items()}
    figures = [trained[f"keypoints/{name}"] for name in ("AP", "AP50", "AP75", "APm", "APl")]
    np.testing.assert_allclose(figures, expected, atol=1e-9)


def test_the_metadata_is_that_of_detectron2(data):
    make_cfg(data())
    metadata = MetadataCatalog.get("mine")
    assert metadata.keypoint_names == NAMES
    assert metadata.keypoint_flip_map == [("left_wing", "right_wing")]
    pairs = [(a, b) for a, b, _ in metadata.keypoint_connection_rules]
    assert pairs == [("tip", "left_wing"), ("tip", "right_wing")]
    # Detectron2 draws with it.
    picture = Visualizer(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), metadata)
    picture.draw_and_connect_keypoints(np.array(points(10, 10, 60, 50)).reshape(4, 3))
    assert (picture.output.get_image() < 128).any()


@pytest.mark.parametrize("pairs", [None, [["tip", "tail"]]])
def test_a_flip_exchanges_left_and_right(data, pairs):
    opts = [] if pairs is None else ["DATASETS.KEYPOINT_FLIP_PAIRS", str(pairs)]
    cfg = make_cfg(data(None, *opts))
    mapper = CheckedDatasetMapper(cfg, is_train=True)
    record = DatasetCatalog.get("mine")[0]
    order = [0, 2, 1, 3] if pairs is None else [3, 1, 2, 0]
    plain = np.array(record["annotations"][0]["keypoints"]).reshape(4, 3)
    flipped = plain * [-1, 1, 1] + [WIDTH, 0, 0]
    for expected in (plain, flipped):
        expected[plain[:, 2] == 0] = 0  # as in COCO, a point that is not labeled is at 0, 0
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        keypoints = mapper(record)["instances"].gt_keypoints.tensor
        assert not keypoints[1].any()  # an object without keypoints
        is_flipped = bool(np.allclose(keypoints[0], flipped[order], atol=1e-4))
        assert is_flipped or np.allclose(keypoints[0], plain, atol=1e-4)
        seen.add(is_flipped)
    assert seen == {True, False}


# ---- names and sides ----

PAIRED = [
    *[("left_eye", "right_eye"), ("left-x", "right-x"), ("x_left", "x_right"), ("L1", "R1")],
    *[("Left Eye", "Right Eye"), ("EYE_LEFT", "EYE_RIGHT"), ("l_x", "r_x"), ("eye.l", "eye.r")],
    *[("Eye (L)", "Eye (R)"), ("LeftEye", "RightEye"), ("leftEye", "rightEye"), ("L", "R")],
    *[("lefteye", "righteye"), ("earL", "earR"), ("l eye", "right_eye"), ("left", "right")],
]


@pytest.mark.parametrize("pair", PAIRED)
def test_names_that_tell_left_from_right(pair):
    for names in (["nose", *pair, "tail"], ["tail", *reversed(pair)]):
        assert flip_pairs(names) == [pair]
        assert not unpaired_names(names, [pair])


def test_names_without_sides_or_counterparts():
    for names in (["1", "2"], ["ball", "barr"], ["left_a", "right_b"], ["l_a", "l_b"]):
        assert flip_pairs(names) == []
    assert unpaired_names(["left_a", "right_b", "c"], []) == ["left_a", "right_b"]


# ---- what is refused, warned of or taken out ----


def put(**changes):
    return lambda whole: whole["categories"][1].update(changes)


def second_list(whole):
    whole["categories"][0]["keypoints"] = ["edge"]


def invisible(whole):
    for a in whole["annotations"]:
        a["keypoints"] = [5, 5, 0] * 4


REFUSED = {
    "no names": (put(keypoints=[]), [], "no category names its keypoints"),
    "not a list": (put(keypoints="tip"), [], "'keypoints' of category 'bird'"),
    "names twice": (put(keypoints=["a", "a"]), [], "different names"),
    "two lists": (second_list, [], "'bird' and 'cloud' have different keypoints"),
    "none visible": (invisible, [], "no object in mine has a keypoint"),
    "side without counterpart": (put(keypoints=["a", "left_b", "c", "d"]), [], "left_b have no"),
    "NUM_KEYPOINTS": (None, ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"], "NUM_KEYPOINTS 4"),
    "sigmas": (None, ["TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1]"], "has 2 values.*4 keypoints"),
    "sigma of 0": (None, ["TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0, 1, 1]"], "above 0"),
    "pair of others": (
        None,
        ["DATASETS.KEYPOINT_FLIP_PAIRS", "[['tip', 'toe']]"],
        "KEYPOINT_FLIP_PAIRS names toe",
    ),
    "pair twice": (
        None,
        ["DATASETS.KEYPOINT_FLIP_PAIRS", "[['tip', 'tail'], ['tail', 'left_wing']]"],
        "tail more than once",
    ),
    "no pairs": (None, ["DATASETS.KEYPOINT_FLIP_PAIRS", "['tip']"], "write .*left name"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mistakes_are_a_line(kind, data):
    change, opts, says = REFUSED[kind]
    with pytest.raises(UserError, match=says) as e:
        make_cfg(data(change, *opts))
    assert len(str(e.value).splitlines()) == 1


def test_sides_without_a_counterpart_are_trained_on_without_flips(data):
    names = ["a", "left_b", "c", "d"]
    make_cfg(data(put(keypoints=names), "INPUT.RANDOM_FLIP", "none"))
    make_cfg(data(put(keypoints=names), "DATASETS.KEYPOINT_FLIP_PAIRS", "[['left_b', 'd']]"))


def test_names_without_sides_are_warned_of(data, caplog):
    with caplog.at_level(logging.WARNING):
        make_cfg(data(put(keypoints=list("abcd"))))
    assert "DATASETS.KEYPOINT_FLIP_PAIRS" in caplog.text


def test_keypoints_of_another_number_are_taken_out(data):
    def change(whole):
        whole["annotations"][0]["keypoints"] = [1, 2, 2]

    make_cfg(data(change))
    objects = [a for r in DatasetCatalog.get("mine") for a in r["annotations"]]
    assert "keypoints" not in objects[0] and len(objects[2]["keypoints"]) == 12


def test_boxes_are_trained_on_whatever_the_keypoints_are(data):
    for change in (second_list, put(keypoints="tip"), invisible):
        make_cfg(data(change, "MODEL.KEYPOINT_ON", "False"))


def test_default_sigmas():
    """COCO's for its persons, and their mean for any others; one set is checked by its length."""
    assert keypoint_sigmas((), 17)[:2] == pytest.approx([0.026, 0.025])
    assert keypoint_sigmas((), 3) == [0.067] * 3
    assert keypoint_sigmas([0.1, 0.2], 2) == [0.1, 0.2]


def test_results_leave_the_detections_as_they_were():
    """Detectron2's function moves the keypoints by half a pixel, in place."""
    found = Instances((80, 100), pred_boxes=Boxes(torch.rand(2, 4)), scores=torch.rand(2))
    found.pred_classes = torch.zeros(2, dtype=torch.int64)
    found.pred_keypoints = torch.rand(2, 4, 3)
    before = found.pred_keypoints.clone()
    results = to_coco(found, 1, [1, 2, 3, 4, 5])
    assert torch.equal(found.pred_keypoints, before)
    expected = before[0] - torch.tensor([0.5, 0.5, 0])
    assert results[0]["keypoints"] == pytest.approx(expected.flatten().tolist())
