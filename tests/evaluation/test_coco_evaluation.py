"""The evaluator: COCO's figures as pycocotools computes them, in Detectron2's interface."""

import contextlib
import copy
import io
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2 import evaluation as stock
from detectron2.data import MetadataCatalog
from detectron2.evaluation import coco_evaluation as stock_module
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.evaluation import make_detections
from rsb_d2 import UserError
from rsb_d2.evaluation import COCOEvaluator
from rsb_d2.evaluation.coco_evaluation import evaluate_detections

H, W = 120, 160
TASKS = ("bbox", "segm")


def load(truth):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
    return coco


def reference(truth, results, task, img_ids=None, max_dets=None):
    """pycocotools, as Detectron2 calls it."""
    results = copy.deepcopy(results)
    for r in results:
        r.pop("bbox" if task == "segm" else "segmentation", None)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = load(truth)
        found = coco.loadRes(results)
        kind = COCOeval
        if max_dets and max_dets[2] != 100:
            kind = stock_module.COCOevalMaxDets
        e = kind(coco, found, task)
        if max_dets:
            e.params.maxDets = list(max_dets)
        if img_ids is not None:
            e.params.imgIds = list(img_ids)
        e.evaluate()
        e.accumulate()
        e.summarize()
    return e


def check(truth, results, **kwargs):
    """All figures, and those of each class, recall and limit, are the reference's."""
    for task in TASKS:
        expected = reference(truth, results, task, **kwargs)
        got = evaluate_detections(load(truth).dataset, results, task, **kwargs or {})
        np.testing.assert_allclose(got.stats, expected.stats, rtol=0, atol=1e-12)
        for key in ("precision", "recall", "scores"):
            np.testing.assert_allclose(got.eval[key], expected.eval[key], rtol=0, atol=1e-12)
    return expected


def seeded(seed=0, num_images=12, num_classes=5, detections=40, **kwargs):
    return make_detections(num_images, detections, num_classes, (H, W), seed=seed, **kwargs)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_pycocotools(seed):
    truth, results = seeded(seed)
    assert any(a["iscrowd"] for a in truth["annotations"]) or seed
    expected = check(truth, results)
    assert 0.05 < expected.stats[0] < 0.95  # neither trivial


def test_the_bounds_of_area_ranges_belong_to_both():
    truth, results = seeded(2)
    for a, area in zip(truth["annotations"], [32**2, 96**2, 0.5, 1e5**2, 32**2 + 0.5]):
        a["area"] = area
    assert (check(truth, results).stats > -1).all()


def test_equal_scores_keep_their_order():
    truth, results = seeded(3)
    for r in results:
        r["score"] = round(r["score"], 1)
    check(truth, results)
    for r in results:
        r["score"] = 0.5
    check(truth, results)
    # The order does matter here: the other way round gives something else.
    backwards = reference(truth, results[::-1], "bbox").stats
    assert np.abs(backwards - reference(truth, results, "bbox").stats).max() > 1e-6


def test_images_and_classes_without_objects_or_detections():
    truth, results = seeded(4, num_classes=6)
    truth["annotations"] = [
        a for a in truth["annotations"] if a["image_id"] > 3 and a["category_id"] != 2
    ]
    results = [r for r in results if r["image_id"] != 5 and r["category_id"] not in (3, 2)]
    truth["categories"].append({"id": 77, "name": "of nothing"})
    expected = check(truth, results)
    assert expected.eval["recall"].shape[1] == 7


@pytest.mark.parametrize("limit", [5, 300])
def test_any_limit_of_detections(limit):
    truth, results = seeded(8, num_images=6, num_classes=2, detections=120)
    check(truth, results, max_dets=[1, 10, limit])


def test_mistakes():
    truth, results = seeded(11)
    with pytest.raises(ValueError, match="no image 4711"):
        evaluate_detections(load(truth).dataset, [{**results[0], "image_id": 4711}], "bbox")
    for a in truth["annotations"]:
        del a["segmentation"]
    with pytest.raises(UserError, match=r"annotation \d+ of image \d+ has no mask.*MASK_ON"):
        evaluate_detections(load(truth).dataset, results, "segm")
    evaluate_detections(load(truth).dataset, results, "bbox")


@pytest.fixture
def dataset(tmp_path):
    """A registered data set whose category ids are not the model's numbers."""
    truth, results = seeded(12)
    ids = {1: 3, 2: 5, 3: 8, 4: 13, 5: 21}
    for record in (*truth["annotations"], *results):
        record["category_id"] = ids[record["category_id"]]
    for c in truth["categories"]:
        c["id"] = ids[c["id"]]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    name = "evaluation_test"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        evaluator_type="coco",
        thing_classes=[f"class {i}" for i in ids],
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(ids.values())},
    )
    yield name, truth, results
    MetadataCatalog.remove(name)


def outputs_of(dataset, masks=True):
    """What a model would have returned."""
    name, truth, results = dataset
    numbers = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    for image in truth["images"]:
        of_image = [r for r in results if r["image_id"] == image["id"]]
        instances = Instances((H, W))
        boxes = torch.tensor([r["bbox"] for r in of_image]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        instances.scores = torch.tensor([r["score"] for r in of_image])
        instances.pred_classes = torch.tensor([numbers[r["category_id"]] for r in of_image])
        if masks:
            decoded = [mask_util.decode(r["segmentation"]) for r in of_image]
            instances.pred_masks = torch.tensor(np.array(decoded).reshape(-1, H, W)).bool()
        yield {"image_id": image["id"]}, {"instances": instances}


def run(evaluator, outputs, **kwargs):
    evaluator.reset()
    for input, output in outputs:
        evaluator.process([input], [output])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate(**kwargs)


@pytest.mark.parametrize("max_dets", [None, 15])
@pytest.mark.parametrize("masks", [True, False])
def test_results_and_files_equal_detectron2s(dataset, tmp_path, masks, max_dets):
    outputs = list(outputs_of(dataset, masks))
    results = {}
    for kind in (stock.COCOEvaluator, COCOEvaluator):
        folder = tmp_path / kind.__module__
        evaluator = kind(
            dataset[0], output_dir=str(folder), use_fast_impl=False, max_dets_per_image=max_dets
        )
        results[kind] = run(evaluator, outputs)
        results[kind]["files"] = {p.name: p.read_bytes() for p in folder.iterdir()}
    theirs, ours = results.values()
    assert list(ours) == list(theirs) == ["bbox", *(["segm"] if masks else []), "files"]
    for task in list(ours)[:-1]:
        assert list(ours[task]) == list(theirs[task])
        np.testing.assert_allclose(
            list(ours[task].values()), list(theirs[task].values()), rtol=0, atol=1e-10
        )
    json_name = "coco_instances_results.json"
    assert ours["files"][json_name] == theirs["files"][json_name]
    assert ours["files"].keys() - theirs["files"].keys() == {"dataset.json"}
    assert ours["files"].keys() >= theirs["files"].keys()


def test_some_images_and_a_second_call(dataset, caplog):
    with caplog.at_level(logging.DEBUG):
        evaluator = COCOEvaluator(dataset[0])
    assert "Fast COCO eval" not in caplog.text
    outputs = list(outputs_of(dataset))
    first, again = run(evaluator, outputs), run(evaluator, outputs)
    np.testing.assert_equal(again, first)
    some = run(evaluator, outputs, img_ids=[2, 4])
    theirs = run(stock.COCOEvaluator(dataset[0], use_fast_impl=False), outputs, img_ids=[2, 4])
    assert some["segm"]["AP"] == pytest.approx(theirs["segm"]["AP"], abs=1e-10)
    assert some["segm"]["AP"] != first["segm"]["AP"]


def test_a_file_without_annotations_is_not_evaluated(dataset, tmp_path):
    name, truth, results = dataset
    path = tmp_path / "test_set.json"
    path.write_text(json.dumps({k: v for k, v in truth.items() if k != "annotations"}))
    metadata = MetadataCatalog.get(name)
    other = f"{name}_without"
    MetadataCatalog.get(other).set(
        json_file=str(path),
        thing_classes=metadata.thing_classes,
        thing_dataset_id_to_contiguous_id=metadata.thing_dataset_id_to_contiguous_id,
    )
    try:
        folder = tmp_path / "output"
        assert run(COCOEvaluator(other, output_dir=str(folder)), list(outputs_of(dataset))) == {}
        assert len(json.loads((folder / "coco_instances_results.json").read_text())) == len(results)
    finally:
        MetadataCatalog.remove(other)


def test_a_model_with_more_classes_is_one_line(dataset):
    outputs = list(outputs_of(dataset))
    outputs[0][1]["instances"].pred_classes[0] = 5
    with pytest.raises(UserError, match="class 5.*0 to 4 only.*NUM_CLASSES must be 5"):
        run(COCOEvaluator(dataset[0]), outputs)


def test_keypoints_equal_detectron2s(dataset):
    name, truth, results = dataset
    rng = np.random.default_rng(0)
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        points = np.c_[rng.normal(x + w / 2, 0.1 * w, 17), rng.normal(y + h / 2, 0.1 * h, 17)]
        points = np.c_[points, np.full(17, 2)]
        a["keypoints"], a["num_keypoints"] = points.ravel().tolist(), 17
    with open(MetadataCatalog.get(name).json_file, "w") as f:
        f.write(json.dumps(truth))
    outputs = list(outputs_of(dataset, masks=False))
    for _, output in outputs:
        boxes = output["instances"].pred_boxes.tensor
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        points = centres[:, None].repeat(1, 17, 1)
        output["instances"].pred_keypoints = torch.cat([points, torch.ones(len(boxes), 17, 1)], 2)
    ours = run(COCOEvaluator(name, use_fast_impl=False), copy.deepcopy(outputs))
    theirs = run(stock.COCOEvaluator(name, use_fast_impl=False), copy.deepcopy(outputs))
    assert list(ours) == ["bbox", "keypoints"] and ours["keypoints"]["AP"] > 0
    np.testing.assert_equal(ours, theirs)
