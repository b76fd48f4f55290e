"""Several test sets and test-time augmentation: folders, names of metrics, and results."""

import copy
import json
import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, BoxMode, Instances

from rsb_d2 import UserError, optimize_for_inference
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.data import register_coco_json
from rsb_d2.evaluation import build_evaluator
from rsb_d2.evaluation.build import check_tta, evaluate_with_tta, with_tta
from rsb_d2.evaluation.results import prediction_folder
from rsb_d2.solver.ema import evaluate_with_average
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.detections import make_detections, read_data
from tests.helpers.runs.programs import call_tool, only_error
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model
from tests.helpers.weights.standin_weights import make_image

RESULTS = "coco_instances_results.json"
# Names that must not be taken apart.
DAY, NIGHT = "val/day", "val_night"
SPLITS = {DAY: "train", NIGHT: "val"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two data sets whose images have the same ids."""
    folder = tmp_path_factory.mktemp("several")
    make_sample_data(str(folder / "data"), num_train=6, num_val=6)
    return folder


@pytest.fixture
def cfg(data, tmp_path):
    sets = [[n, f"{data}/data/annotations/{s}.json", f"{data}/data/{s}"] for n, s in SPLITS.items()]
    options = ["DATASETS.COCO_JSON", str(sets), "DATASETS.TEST", str(tuple(SPLITS))]
    options += ["MODEL.ROI_HEADS.NUM_CLASSES", "4", "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = make_seeded_config("faster", *options)
    cfg.DATASETS.CLASS_NAMES, cfg.DATASETS.CLASS_IDS = [], []
    with catalogs_kept():
        register_coco_json(cfg, eval_only=True)
        yield cfg


def evaluate(cfg, name, folder=None):
    """AP in percent of detections that are the objects of the data set, jittered."""
    evaluator = build_evaluator(cfg, name, folder)
    evaluator.reset()
    results = make_detections(MetadataCatalog.get(name).json_file, with_masks=False, seed=len(name))
    for record in DatasetCatalog.get(name):
        mine = [r for r in results if r["image_id"] == record["image_id"]]
        boxes = torch.tensor([r["bbox"] for r in mine])
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
        found.scores = torch.tensor([r["score"] for r in mine])
        found.pred_classes = torch.tensor([r["category_id"] - 1 for r in mine])
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]["AP"]


def write_config(cfg, tmp_path):
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return "--config-file", tmp_path / "config.yaml"


@pytest.mark.parametrize("name", list(SPLITS))
def test_a_report_finds_the_data_set_of_the_results(cfg, tmp_path, name):
    aps = {name: evaluate(cfg, name) for name in SPLITS}
    assert abs(aps[DAY] - aps[NIGHT]) > 1
    folder = {DAY: "val%2Fday", NIGHT: NIGHT}[name]
    results = tmp_path / "run" / "inference" / folder / RESULTS
    words = [*write_config(cfg, tmp_path), "--results", results, "--output", "page.html"]
    for chosen in ([], ["--dataset", name]):
        status, _, err = call_tool("report", tmp_path, *words, *chosen)
        assert status == 0, err
        (ap, *_) = read_data(tmp_path / "page.html")["tasks"]["bbox"]["figures"]
        assert 100 * ap == pytest.approx(aps[name], abs=1e-6)

    (other,) = set(SPLITS) - {name}
    status, _, err = call_tool("report", tmp_path, *words, "--dataset", other)
    assert status == 2 and f"has the results of {name}" in only_error("report", err.splitlines())


class RecordingTrainer:
    """Stands for a trainer; evaluates nothing, and keeps where it would write."""

    build_evaluator = staticmethod(lambda cfg, name, folder: folder)

    @staticmethod
    def test(cfg, model, folders):
        RecordingTrainer.folders = [os.path.relpath(f, cfg.OUTPUT_DIR) for f in folders]
        return {}


def test_folders_of_test_time_augmentation_and_averaged_weights(cfg):
    model = make_seeded_model(cfg)
    evaluate_with_tta(RecordingTrainer, cfg, model)
    assert RecordingTrainer.folders == ["inference_TTA/val%2Fday", f"inference_TTA/{NIGHT}"]

    folders = []
    evaluate_with_average(
        lambda cfg, _: folders.extend(prediction_folder(cfg, n) for n in SPLITS), cfg, {}, model
    )
    assert [os.path.relpath(f, cfg.OUTPUT_DIR) for f in folders] == [
        "ema/inference/val%2Fday",
        f"ema/inference/{NIGHT}",
    ]
    cfg.DATASETS.TEST = (DAY,)
    evaluate_with_tta(RecordingTrainer, cfg, model)
    assert RecordingTrainer.folders == ["inference_TTA"]
    assert prediction_folder(cfg, DAY) == os.path.join(cfg.OUTPUT_DIR, "inference")
    assert prediction_folder(cfg, NIGHT) == os.path.join(cfg.OUTPUT_DIR, "inference", NIGHT)


def test_a_scripts_data_set_is_converted_by_each_process(cfg, tmp_path):
    """Detectron2 would take the file that another run has left, with its objects."""
    records = [dict(r) for r in DatasetCatalog.get(NIGHT)]
    DatasetCatalog.register("of_a_script", lambda: records)
    MetadataCatalog.get("of_a_script").set(
        thing_classes=MetadataCatalog.get(NIGHT).thing_classes, evaluator_type="coco"
    )
    cfg.DATASETS.TEST = ("of_a_script",)
    path = tmp_path / "run" / "inference" / "of_a_script_coco_format.json"
    path.parent.mkdir(parents=True)
    stale = {"info": {}, "images": [], "categories": [], "annotations": []}
    path.write_text(json.dumps(stale))
    build_evaluator(cfg, "of_a_script")
    assert len(json.loads(path.read_text())["images"]) == len(records)
    # Within a process it stays, until it has gone.
    before = path.stat().st_mtime_ns
    build_evaluator(cfg, "of_a_script")
    assert path.stat().st_mtime_ns == before
    path.unlink()
    build_evaluator(cfg, "of_a_script")
    assert len(json.loads(path.read_text())["images"]) == len(records)


SIZES = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", "200")


def make_input():
    image = torch.as_tensor(make_image(96, 128).transpose(2, 0, 1).copy())
    return [{"image": image, "height": 192, "width": 256}]


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade"])
def test_the_optimized_model_finds_the_same(kind, device):
    cfg = make_seeded_config(kind, *SIZES, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg)
    with torch.no_grad():
        expected = GeneralizedRCNNWithTTA(cfg, copy.deepcopy(model))(make_input())[0]["instances"]
        single = model(make_input())[0]["instances"]
        optimized = with_tta(cfg, optimize_for_inference(model))
        found = optimized(make_input())[0]["instances"]
    assert len(expected) > 10
    assert expected.image_size == (192, 256)
    assert not torch.equal(expected.scores, single.scores)  # it does something
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=0.05
    )
    if cfg.MODEL.MASK_ON:
        assert (found.pred_masks == expected.pred_masks).float().mean() > 0.999
    # As an evaluation leaves it: an optimized model cannot be put into training mode.
    assert not optimized.training and not optimized.eval().training


@pytest.mark.parametrize(
    "kind, opts, says",
    [
        ("retinanet", [], "MODEL.META_ARCHITECTURE is OpenMMLabRetinaNet"),
        ("mask", ["MODEL.META_ARCHITECTURE", "PanopticFPN"], "META_ARCHITECTURE is PanopticFPN"),
        ("faster", ["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "is ProposalNetwork"),
        ("faster", ["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON is True"),
        ("faster", ["MODEL.LOAD_PROPOSALS", "True"], "MODEL.LOAD_PROPOSALS is True"),
        ("faster", ["TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES is empty"),
    ],
)
def test_models_that_cannot_be_augmented_are_one_line(kind, opts, says):
    cfg = make_seeded_config(kind, *SIZES, *opts)
    with pytest.raises(UserError, match=says) as error:
        check_tta(cfg)
    assert "\n" not in str(error.value)
