"""The evaluators of data sets other than COCO's, against their packages and definitions."""

import copy
import glob
import importlib
import importlib.util
import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    register_lvis_instances,
    register_pascal_voc,
)
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.structures import Boxes, Instances
from PIL import Image

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.data import builtin as packages
from rsb_d2.evaluation import build_evaluator
from rsb_d2.evaluation.build import older_numpy
from tests.helpers.data import layouts
from tests.helpers.data.layouts import HEIGHT, WIDTH


def evaluate(name, outputs, folder=None):
    """Figures of outputs, a dict of what a model gives by the name of the image file."""
    cfg = get_cfg()
    add_rsb_config(cfg)
    evaluator = build_evaluator(cfg, name, None if folder is None else str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        # Some evaluators change what they are given.
        evaluator.process([record], [copy.deepcopy(outputs[record["file_name"]])])
    return evaluator.evaluate()


def jittered(record, num_classes, seed, with_masks=True):
    """Detections near the objects of a record, some of a wrong class, and some of nothing."""
    rng = np.random.default_rng([seed, *record["file_name"].encode()[-12:]])
    boxes, classes = [], []
    for annotation in record["annotations"] * 2:
        x0, y0, x1, y1 = annotation["bbox"]
        if annotation["bbox_mode"] == 1:  # XYWH
            x1, y1 = x0 + x1, y0 + y1
        box = np.array([x0, y0, x1, y1]) + rng.normal(0, 2.5, 4)
        if rng.random() < 0.15:
            box = rng.uniform(0, 60, 4)
            box[2:] += box[:2] + 5
        boxes.append(box.clip(0, [WIDTH, HEIGHT] * 2))
        is_wrong = rng.random() < 0.2
        classes.append(rng.integers(num_classes) if is_wrong else annotation["category_id"])
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.as_tensor(np.stack(boxes), dtype=torch.float32))
    found.scores = torch.as_tensor(rng.uniform(0.05, 1, len(boxes)), dtype=torch.float32)
    found.pred_classes = torch.as_tensor(np.array(classes, dtype=np.int64))
    if with_masks:
        masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, found.pred_boxes.tensor.round().int().tolist()):
            mask[y0:y1, x0:x1] = True
        found.pred_masks = masks
    return {"instances": found}


# ---- LVIS ----


@pytest.fixture(scope="module")
def lvis_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("lvis")
    layouts.make_lvis(root, num_images=10)
    metadata = get_lvis_instances_meta("lvis_v1")
    path = str(root / "lvis" / "lvis_v1_val.json")
    register_lvis_instances("rsb_tiny_lvis_v1", metadata, path, f"{root}/coco/")
    return "rsb_tiny_lvis_v1"


def test_lvis(lvis_data, tmp_path, monkeypatch):
    lvis = pytest.importorskip("lvis")
    outputs = {r["file_name"]: jittered(r, 4, seed=1) for r in DatasetCatalog.get(lvis_data)}
    found = evaluate(lvis_data, outputs, tmp_path)
    if importlib.util.find_spec("lvis") and not hasattr(np, "float"):
        monkeypatch.setattr(np, "float", float, raising=False)
    truth = lvis.LVIS(MetadataCatalog.get(lvis_data).json_file)
    for task in ("bbox", "segm"):
        results = json.loads((tmp_path / "lvis_instances_results.json").read_text())
        for result in results:
            result.pop("bbox" if task == "segm" else "segmentation")
        expected = lvis.LVISEval(truth, lvis.LVISResults(truth, results), task)
        expected.run()
        assert 5 < found[task]["AP"] < 95 and found[task]["APr"] == -100  # neither; none is rare
        for name, value in found[task].items():
            assert value == 100 * expected.results[name], name


def test_older_numpy_is_limited_to_a_module(lvis_data):
    pytest.importorskip("lvis")
    before = dict(vars(np))
    with older_numpy("lvis.eval"):
        module = importlib.import_module("lvis.eval")
        assert module.np.float is float and vars(np).keys() == before.keys()
    assert module.np is np
    outputs = {r["file_name"]: jittered(r, 4, seed=2) for r in DatasetCatalog.get(lvis_data)}
    assert evaluate(lvis_data, outputs)["bbox"]["AP"] > 0
    assert vars(np).keys() == before.keys()


# ---- Pascal VOC ----


def voc_ap(found, truth, threshold, is_2007):
    """VOC's average precision of one class, implemented from the devkit's definition."""
    scores, hits, taken = [], [], set()
    for score, image, box in sorted(found, key=lambda f: -f[0]):
        overlaps = [voc_iou(box, other) for other in truth[image]] or [0.0]
        best = int(np.argmax(overlaps))
        is_hit = overlaps[best] > threshold and (image, best) not in taken
        if is_hit:
            taken.add((image, best))
        scores.append(score)
        hits.append(is_hit)
    tp = np.cumsum(hits)
    recall = tp / sum(map(len, truth.values()))
    precision = tp / np.arange(1, len(hits) + 1)
    if is_2007:
        at = [precision[recall >= t].max(initial=0) for t in np.arange(0, 1.1, 0.1)]
        return np.mean(at)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return np.sum(np.diff(recall, prepend=0) * envelope)


def voc_iou(a, b):
    """Of boxes whose last pixels belong to them."""
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    if w <= 0 or h <= 0:
        return 0.0
    area = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return w * h / (sum(area) - w * h)


@pytest.mark.parametrize("year", [2007, 2012])
def test_pascal_voc(tmp_path, year):
    layouts.make_voc(tmp_path, num_images=8)
    name, classes = f"rsb_tiny_voc_{year}", ("person", "car", "bus")
    register_pascal_voc(name, str(tmp_path / "VOC2007"), "test", year, classes)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    records = DatasetCatalog.get(name)
    outputs = {r["file_name"]: jittered(r, 3, seed=year, with_masks=False) for r in records}
    figures = evaluate(name, outputs)["bbox"]

    aps = {50: [], 75: []}
    for c in range(3):
        truth = {
            r["image_id"]: [
                np.add(a["bbox"], [1, 1, 0, 0]) for a in r["annotations"] if a["category_id"] == c
            ]
            for r in records
        }
        found = []
        for r in records:
            instances = outputs[r["file_name"]]["instances"]
            instances = instances[instances.pred_classes == c]
            for score, box in zip(instances.scores.tolist(), instances.pred_boxes.tensor.tolist()):
                # Detections are written with so many digits.
                box = [round(v, 1) for v in np.add(box, [1, 1, 0, 0])]
                found.append((round(score, 3), r["image_id"], box))
        for t in aps:
            aps[t].append(voc_ap(found, truth, t / 100, is_2007=year == 2007))
    assert 5 < figures["AP75"] < figures["AP50"] < 99
    for t, of_classes in aps.items():
        assert figures[f"AP{t}"] == pytest.approx(100 * np.mean(of_classes), abs=0.2)


# ---- Cityscapes ----


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    packages.provide_cityscapes()
    root = tmp_path_factory.mktemp("cityscapes")
    layouts.make_cityscapes(root, num_images=4, splits=("val",))
    folders = [f"{root}/cityscapes/{kind}/val" for kind in ("leftImg8bit", "gtFine")]
    records = load_cityscapes_instances(*folders)
    for kind in ("instance", "sem_seg"):
        name = f"rsb_tiny_cityscapes_{kind}"
        DatasetCatalog.register(name, lambda: records)
        metadata = _get_builtin_metadata("cityscapes")
        MetadataCatalog.get(name).set(
            image_dir=folders[0],
            gt_dir=folders[1],
            evaluator_type=f"cityscapes_{kind}",
            ignore_label=255,
            **metadata,
        )
    return records


def test_cityscapes_instances(cityscapes, tmp_path, monkeypatch):
    """Against the package's own reading of the files of a submission to its server."""
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as package
    from cityscapesscripts.helpers.labels import name2label

    name = "rsb_tiny_cityscapes_instance"
    outputs = {r["file_name"]: jittered(r, 3, seed=3) for r in cityscapes}
    found = evaluate(name, outputs)["segm"]

    classes = MetadataCatalog.get(name).thing_classes
    for path, output in outputs.items():
        stem = path.rpartition("/")[2].removesuffix(".png")
        lines = []
        for i, one in enumerate(zip(*output["instances"].get_fields().values())):
            _, score, c, mask = one
            Image.fromarray(np.uint8(mask) * 255).save(tmp_path / f"{stem}_{i}.png")
            lines.append(f"{stem}_{i}.png {name2label[classes[c]].id} {score}")
        (tmp_path / f"{stem}_pred.txt").write_text("\n".join(lines))
    args = package.args
    args.predictionPath, args.predictionWalk = str(tmp_path), None
    args.gtInstancesFile = str(tmp_path / "truth.json")
    truth = sorted(glob.glob(f"{MetadataCatalog.get(name).gt_dir}/*/*_instanceIds.png"))
    predictions = [package.getPrediction(path, args) for path in truth]
    monkeypatch.setattr(np, "in1d", lambda a, b: np.isin(a, b).ravel(), raising=False)
    monkeypatch.setattr(package, "writeDict2JSON", lambda content, path: None)
    expected = package.evaluateImgLists(predictions, truth, args)["averages"]
    assert 5 < found["AP"] < 95
    assert found == {"AP": 100 * expected["allAp"], "AP50": 100 * expected["allAp50%"]}


def test_cityscapes_labels(cityscapes):
    from cityscapesscripts.helpers.labels import labels

    counts = np.zeros((256, 256), np.int64)
    outputs = {}
    rng = np.random.default_rng(0)
    for record in cityscapes:
        truth = record["file_name"].replace("leftImg8bit/", "gtFine/")
        truth = truth.replace("leftImg8bit.png", "gtFine_labelTrainIds.png")
        truth = np.asarray(Image.open(truth))
        predicted = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 19, truth.shape), truth)
        logits = torch.nn.functional.one_hot(torch.as_tensor(predicted.astype(np.int64)), 19)
        outputs[record["file_name"]] = {"sem_seg": logits.permute(2, 0, 1)}
        np.add.at(counts, (truth.ravel(), predicted.ravel()), 1)
    found = evaluate("rsb_tiny_cityscapes_sem_seg", outputs)["sem_seg"]
    hits, of_truth = np.diag(counts)[:19], counts[:19].sum(1)
    union = of_truth + counts[:19, :19].sum(0) - hits
    # A class that is predicted alone counts as one that was never right.
    assert found["IoU"] == pytest.approx(100 * (hits[union > 0] / union[union > 0]).mean())
    assert {label.trainId for label in labels} >= set(range(19))
    assert found["IoU_sup"] > found["IoU"]


# ---- packages ----


@pytest.mark.parametrize(
    "kind, module, install",
    [
        ("lvis", "lvis", "pip install --no-deps lvis"),
        ("cityscapes_instance", "cityscapesscripts", "pip install cityscapesscripts"),
        ("cityscapes_instance", "shapely", "pip install shapely"),
        ("cityscapes_sem_seg", "cityscapesscripts", "pip install cityscapesscripts"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(kind, module, install, monkeypatch):
    name = f"rsb_without_{module}_{kind}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).evaluator_type = kind
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == module else find(n))
    with pytest.raises(UserError, match=f"{name} needs the package {module}; .*: {install}$"):
        packages.check_packages(name, "TEST")
