"""tools/report.py: the page's figures against pycocotools, bad input, and a real browser."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsb_d2.addons.workbench.report.evaluation import FIGURES
from rsb_d2.addons.workbench.sample import make_sample_data
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.detections import make_detections
from tests.helpers.paths import ROOT
from tests.helpers.report_page import read_data
from tests.helpers.runs.programs import call_tool

CONFIG = str(ROOT / "configs" / "frcnn_rsb_sample.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    sample = folder / "datasets" / "rsb_sample"
    make_sample_data(str(sample), num_train=20, num_val=16)
    # A crowd, an image without objects and one whose file is damaged.
    path = sample / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    path.write_text(json.dumps(content))
    (sample / "val" / "000003.jpg").write_bytes(b"not a picture")
    for name, with_masks in (("boxes", False), ("masks", True)):
        results = make_detections(path, with_masks=with_masks)
        (folder / f"{name}.json").write_text(json.dumps(results))
    (folder / "none.json").write_text("[]")
    return folder


@pytest.fixture
def report(folder):
    """Run the tool on the sample data; returns exit status, stdout and stderr."""

    def run(*arguments, annotations="val.json", images="val"):
        sample = "datasets/rsb_sample"
        dataset = ["--annotations", f"{sample}/annotations/{annotations}"]
        dataset += ["--images", f"{sample}/{images}"]
        status, out, err = call_tool("report", folder, *dataset, *arguments)
        return status, out, [line for line in err.splitlines() if line.startswith("report.py: ")]

    return run


@pytest.fixture(scope="module")
def page(folder):
    """The page on boxes and masks: its path and its data."""
    output = folder / "new" / "page.html"
    words = ["--output", output, "--config-file", CONFIG, "--results", "masks.json"]
    with catalogs_kept("rsb_sample_train", "rsb_sample_val"):
        status, _, err = call_tool("report", folder, *words, "--opts", "DATASETS.SAMPLE_DATA", "")
    assert status == 0, err
    assert os.listdir(output.parent) == ["page.html"]
    return output, read_data(output)


def coco_eval(folder, task, category_ids=None):
    """Evaluate as Detectron2's COCOEvaluator does, with pycocotools itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "datasets/rsb_sample/annotations/val.json"))
        results = json.loads((folder / "masks.json").read_text())
        if task == "segm":
            for result in results:
                del result["bbox"]  # or loadRes would take the boxes' areas
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        if category_ids is not None:
            evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def rounded(stats):
    return [None if value == -1 else round(float(value), 12) for value in stats]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_figures_are_those_of_pycocotools(page, folder, task):
    _, data = page
    evaluation = coco_eval(folder, task)
    assert data["figures"] == list(FIGURES)
    assert data["tasks"][task]["figures"] == rounded(evaluation.stats)
    assert 0.1 < data["tasks"][task]["figures"][1] < 0.95  # so that something was compared
    for k in range(len(data["classes"])):
        stats = coco_eval(folder, task, [k + 1]).stats
        assert data["tasks"][task]["classFigures"][k] == rounded(stats)
    precision = evaluation.eval["precision"][..., 0, 2]
    by_iou = [round(float(p[p > -1].mean()), 12) for p in precision]
    assert data["tasks"][task]["apByIou"] == by_iou
    curve = precision[0].mean(axis=1)
    assert data["tasks"][task]["curves"]["all"][0] == pytest.approx(curve, abs=1e-4)


def test_page_adds_up(page):
    _, data = page
    assert data["counts"]["crowds"] == 1
    for task in data["tasks"].values():
        histogram = sum(n for cls in task["histogram"] for kind in cls for n in kind)
        ignored = data["counts"]["detections"] - histogram
        assert 0 <= ignored < 20
        assert sum(task["objects"]) == data["counts"]["objects"]
        assert [sum(sizes) for sizes in task["sizes"]] == task["objects"]
        objects = sum(n for i, _, n in task["confusion"] if i < len(data["classes"]))
        assert objects == data["counts"]["objects"]
        # Our kind of each detection, against hotcoco's counts.
        kinds = np.sum(task["histogram"], axis=(0, 2))
        assert kinds[1:].tolist() == task["errorCounts"][:-1] and min(kinds) > 0
    assert {image["file"] for image in data["images"] if image["src"] is None} == {"000003.jpg"}


def test_page_refers_to_nothing_outside(page):
    path, _ = page
    text = path.read_text()
    assert 'src="http' not in text and '<link rel="stylesheet' not in text
    assert path.stat().st_size < 20e6


@pytest.mark.slow
def test_in_a_browser(page, browser):
    path, data = page
    boxes, masks = data["tasks"]["bbox"], data["tasks"]["segm"]
    browser.open(path)
    assert browser.run("return document.documentElement.dataset.ready") == "true"
    assert browser.console() == []
    assert browser.values(".tile") == boxes["figures"]
    for k in range(len(data["classes"])):
        row = browser.values(f'tr[data-class="{k}"] td')[1:]
        expected = [*boxes["classFigures"][k], boxes["objects"][k], boxes["detections"][k]]
        assert row == expected
        assert browser.text(".tile b") == f"{100 * boxes['figures'][0]:.2f}"
    assert browser.count("#curves .scatterlayer .trace") == 11
    assert browser.count("#gallery figure") > 3
    assert browser.count("svg image") > 3

    browser.click('tr[data-class="1"] td')  # all that follows is about this class
    assert browser.values(".tile") == boxes["classFigures"][1]
    assert browser.run("return document.getElementById('class').value") == "1"
    assert browser.count("#curves .scatterlayer .trace") == 4
    shown = browser.run("return state.cls === 1 && data.images.map(judge).filter(j => j.total)")
    assert 0 < len(shown) < len(data["images"])

    browser.click("#tasks button:last-child")
    assert browser.values(".tile") == masks["classFigures"][1]
    browser.click("#reset")
    assert browser.values(".tile") == masks["figures"]

    # The longest bar, through Plotly's own events: the images with that error.
    gains = masks["deltaAp"]
    longest = data["errors"][gains.index(max(gains))]
    all_images = browser.count("#gallery figure")
    bar = f"#errors .point:nth-child({gains.index(max(gains)) + 1}) path"
    browser.click(bar)
    assert browser.run("return state.error") == longest
    assert browser.count("#gallery figure") <= all_images
    browser.click("#error-chip")
    assert browser.run("return state.error") is None
    browser.run("update({ cls: 0, error: 'Loc', order: 'best', log: true, score: 0.3 })")
    assert browser.console() == []


def test_box_only_results(report, folder):
    status, out, errors = report("--results", "boxes.json", "--output", "boxes.html")
    assert (status, errors) == (0, [])
    data = read_data(folder / "boxes.html")
    assert list(data["tasks"]) == ["bbox"]
    assert any("Masks are not evaluated" in note for note in data["notes"])
    assert f"{100 * data['tasks']['bbox']['figures'][0]:.2f}" in out
    status, _, errors = report("--results", "boxes.json", "--task", "segm")
    assert status == 2 and len(errors) == 1 and "box-only" in errors[0]


def test_masks_in_the_results_alone(report, folder):
    path = folder / "datasets/rsb_sample/annotations/no_masks.json"
    content = json.loads((path.parent / "val.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    status, _, _ = report("--results", "masks.json", "--output", "m.html", annotations=path.name)
    assert status == 0
    data = read_data(folder / "m.html")
    assert list(data["tasks"]) == ["bbox"]
    assert any("annotations have no mask" in note for note in data["notes"])


@pytest.mark.slow
def test_no_detection_at_all(report, folder, browser):
    status, _, errors = report("--results", "none.json", "--output", "none.html")
    assert status == 1 and errors == ["report.py: warning: none.json holds no detection at all"]
    data = read_data(folder / "none.html")
    task = data["tasks"]["bbox"]
    assert task["figures"][0] == 0 and task["deltaAp"] == [0, 0, 0, 0, 0, 1]
    browser.open(folder / "none.html")
    assert browser.run("return document.documentElement.dataset.ready") == "true"
    assert browser.console() == []


def change(folder, name, **values):
    results = json.loads((folder / "masks.json").read_text())
    results[3].update(values)
    (folder / name).write_text(json.dumps(results))
    return name


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(image_id=999), "of images that are not in rsb_sample"),
        (dict(category_id=77), "it has 1, 2"),
        (dict(category_id="cat"), "position 3 has no 'category_id' that is an integer"),
        (dict(score=float("nan")), "position 3 has no 'score'"),
        (dict(bbox=[1, 2, 3]), "position 3 has no 'bbox'"),
        (dict(segmentation=dict(size=[9, 9], counts="0")), "position 3 has a mask of size [9, 9]"),
    ],
)
def test_results_that_do_not_fit(report, folder, values, message):
    name = change(folder, "bad.json", **values)
    status, _, errors = report("--results", name, "--output", "never.html")
    message = message.replace("rsb_sample", "annotations/val.json")
    assert status == 2 and len(errors) == 1 and message in errors[0] and name in errors[0]
    assert not (folder / "never.html").exists()


def test_class_indices_in_place_of_category_ids(report, folder):
    results = json.loads((folder / "boxes.json").read_text())
    for result in results:
        result["category_id"] -= 1
    (folder / "indices.json").write_text(json.dumps(results))
    status, _, errors = report("--results", "indices.json")
    assert status == 2 and "class indices" in errors[0]


def test_no_annotation_at_all(report, folder):
    path = folder / "datasets/rsb_sample/annotations/empty.json"
    content = json.loads((path.parent / "val.json").read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    status, _, errors = report("--results", "boxes.json", annotations=path.name)
    assert status == 2 and len(errors) == 1 and "no usable annotation" in errors[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--results", "missing.json"], "there is no such results file"),
        (["--results", "datasets/rsb_sample/val/000001.jpg"], "is not JSON"),
        (["--results", "datasets/rsb_sample/annotations/val.json"], "is not a results file"),
        (["--results", "boxes.json", "--output", "datasets"], "is a folder; name a file"),
        (
            ["--results", "boxes.json", "--output", "boxes.json/x.html"],
            "cannot write to the",
        ),
        (["--results", "boxes.json", "--output", "/proc/no/x.html"], "cannot write to the"),
        (["--results", "boxes.json", "--output", "page.txt"], "must end in .html"),
        (["--results", "boxes.json", "--dataset", "x"], "both name a data set"),
    ],
)
def test_bad_arguments(report, arguments, message):
    status, _, errors = report(*arguments)
    assert status == 2 and len(errors) == 1 and message in errors[0]


def test_results_of_another_data_set_with_the_same_ids(report, folder):
    results = make_detections(
        folder / "datasets/rsb_sample/annotations/train.json", with_masks=False
    )
    results = [r for r in results if r["image_id"] <= 16]
    (folder / "train.json").write_text(json.dumps(results))
    status, _, _ = report("--results", "train.json", "--output", "other.html")
    notes = read_data(folder / "other.html")["notes"]
    assert status == 0 and any("reach beyond their image" in note for note in notes)
