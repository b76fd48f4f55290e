"""tools/report.py: figures against pycocotools, mistakes of users, and the page in a browser."""

import contextlib
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsb_d2.addons.workbench.report.evaluation import FIGURES
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.data.predictions import write_dataset_name
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.detections import make_detections, read_data
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import call_tool

CONFIG = str(ROOT / "configs" / "frcnn_rsb_sample.yaml")
SAMPLE = "datasets/rsb_sample"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    sample = folder / SAMPLE
    make_sample_data(str(sample), num_train=20, num_val=16)
    # A crowd, an image without objects, and a damaged file.
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
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (sample / "annotations" / "no_masks.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def report(folder):
    """Run the tool on the sample data; returns exit status, stdout and the lines of errors."""

    def run(*arguments, annotations="val.json"):
        dataset = ["--annotations", f"{SAMPLE}/annotations/{annotations}"]
        dataset += ["--images", f"{SAMPLE}/val"]
        status, out, err = call_tool("report", folder, *dataset, *arguments)
        return status, out, [line for line in err.splitlines() if line.startswith("report.py: ")]

    return run


@pytest.fixture(scope="module")
def page(folder):
    """The page about boxes and masks, made from a config: its path and its data."""
    output = folder / "new" / "page.html"
    words = ["--output", output, "--config-file", CONFIG, "--results", "masks.json"]
    with catalogs_kept("rsb_sample_train", "rsb_sample_val"):
        status, _, err = call_tool("report", folder, *words)
    assert status == 0, err
    assert list(output.parent.iterdir()) == [output]
    return output, read_data(output)


def coco_eval(folder, task, category_ids=None):
    """Evaluate with pycocotools, as Detectron2's COCOEvaluator does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / SAMPLE / "annotations/val.json"))
        results = json.loads((folder / "masks.json").read_text())
        if task == "segm":
            for result in results:
                del result["bbox"]  # otherwise, loadRes uses the areas of the boxes
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
def test_figures_equal_those_of_pycocotools(page, folder, task):
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


def test_images_that_the_evaluation_skipped_are_left_out(report, folder):
    (folder / "skipped").mkdir()
    shutil.copy(folder / "masks.json", folder / "skipped" / "results.json")
    write_dataset_name(str(folder / "skipped"), "rsb_sample_val", [3, 4])
    results = json.loads((folder / "masks.json").read_text())
    results = [r for r in results if r["image_id"] not in (3, 4)]
    (folder / "skipped" / "results.json").write_text(json.dumps(results))
    status, _, _ = report("--results", "skipped/results.json", "--output", "skipped.html")
    found = read_data(folder / "skipped.html")
    assert status == 0 and found["counts"]["images"] == 14
    assert "2 of 16 images are left out, as in the evaluation." in found["notes"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / SAMPLE / "annotations/val.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.imgIds = [i for i in truth.getImgIds() if i not in (3, 4)]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = [None if figure < 0 else figure for figure in evaluation.stats]
    assert found["tasks"]["bbox"]["figures"] == pytest.approx(expected)


def test_page_adds_up(page):
    path, data = page
    num_objects = data["counts"]["objects"]
    assert data["counts"]["crowds"] == 1
    for task in data["tasks"].values():
        kinds = np.sum(task["histogram"], axis=(0, 2))
        assert 0 <= data["counts"]["detections"] - kinds.sum() < 20  # ignored
        # Our kind of each detection, against hotcoco's counts.
        assert kinds[1:].tolist() == task["errorCounts"][:-1] and min(kinds) > 0
        assert sum(task["objects"]) == num_objects
        assert [sum(sizes) for sizes in task["sizes"]] == task["objects"]
        confusion = task["confusion"]
        assert num_objects == sum(n for i, _, n in confusion if i < len(data["classes"]))
    assert {image["file"] for image in data["images"] if image["src"] is None} == {"000003.jpg"}
    text = path.read_text()
    assert 'src="http' not in text and '<link rel="stylesheet' not in text
    assert path.stat().st_size < 20e6


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")
def test_the_page_in_a_browser(page):
    path, data = page
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"]
    shown = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120).stdout
    assert 'data-ready="true"' in shown
    for value in data["tasks"]["bbox"]["figures"]:
        assert value is None or f'data-value="{value}"' in shown
    assert shown.count("<figure") > 3


def test_no_masks_in_the_results_or_in_the_annotations(report, folder):
    status, out, errors = report("--results", "boxes.json", "--output", "boxes.html")
    assert (status, errors) == (0, [])
    data = read_data(folder / "boxes.html")
    assert list(data["tasks"]) == ["bbox"]
    assert any("Masks are not evaluated" in note for note in data["notes"])
    assert f"{100 * data['tasks']['bbox']['figures'][0]:.2f}" in out
    assert (
        report("--results", "masks.json", "--output", "m.html", annotations="no_masks.json")[0] == 0
    )
    data = read_data(folder / "m.html")
    assert list(data["tasks"]) == ["bbox"]
    assert any("annotations have no mask" in note for note in data["notes"])


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(image_id=999), "of images that are not in annotations/val.json"),
        (dict(category_id=77), "it has 1, 2"),
        (dict(category_id=0), "class indices"),
        (dict(category_id="cat"), "position 3 has no 'category_id' that is an integer"),
        (dict(score=float("nan")), "position 3 has no 'score'"),
        (dict(score=10**400), "no 'score'"),
        (dict(bbox=[1, 2, 3]), "position 3 has no 'bbox'"),
        (dict(segmentation=dict(size=[9, 9], counts="0")), "position 3 has a mask of size [9, 9]"),
        (dict(segmentation=dict(size=[240, 320], counts="0P0")), "position 3"),
    ],
)
def test_results_that_do_not_fit(report, folder, values, message):
    results = json.loads((folder / "masks.json").read_text())
    results[3].update(values)
    if values == dict(category_id=0):
        results = [dict(r, category_id=min(r["category_id"], 3)) for r in results]
    (folder / "bad.json").write_text(json.dumps(results))
    status, _, errors = report("--results", "bad.json", "--output", "never.html")
    assert status == 2 and len(errors) == 1 and message in errors[0] and "bad.json" in errors[0]
    assert not (folder / "never.html").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--results", "missing.json"], "there is no such results file"),
        (["--results", f"{SAMPLE}/val/000001.jpg"], "is not JSON"),
        (["--results", f"{SAMPLE}/annotations/val.json"], "is not a results file"),
        (["--results", "boxes.json", "--output", "datasets"], "is a folder; name a file"),
        (["--results", "boxes.json", "--output", "boxes.json/x.html"], "cannot write to the"),
        (["--results", "boxes.json", "--output", "page.txt"], "must end in .html"),
        (["--results", "boxes.json", "--dataset", "x"], "both name a data set"),
        (["--results", "boxes.json", "--task", "segm"], "box-only"),
    ],
)
def test_bad_arguments(report, arguments, message):
    status, _, errors = report(*arguments)
    assert status == 2 and len(errors) == 1 and message in errors[0]
