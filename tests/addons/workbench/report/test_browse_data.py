"""tools/browse_data.py: coverage by anchors, unusual data, mistakes of users, and the page."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image

from rsb_d2.addons.workbench.report.boxes import best_anchor_ious, build_anchor_grid
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.config.loading import load_config
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.paths import ROOT
from tests.helpers.report_page import read_data
from tests.helpers.runs.programs import call_tool

CONFIG = str(ROOT / "configs" / "frcnn_rsb_sample.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browse")
    sample = folder / "datasets" / "rsb_sample"
    make_sample_data(str(sample), num_train=30, num_val=6)
    content = json.loads((sample / "annotations" / "val.json").read_text())
    (folder / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    return folder


@pytest.fixture
def browse(folder):
    def run(*arguments):
        status, out, err = call_tool("browse_data", folder, *arguments)
        return status, out, [li for li in err.splitlines() if li.startswith("browse_data.py: ")]

    return run


@pytest.fixture(scope="module")
def page(folder):
    """The page and the sheet, made from a config."""
    output = folder / "page.html"
    words = ["--config-file", CONFIG, "--output", output, "--opts"]
    with catalogs_kept("rsb_sample_train", "rsb_sample_val"):
        status, out, err = call_tool("browse_data", folder, *words, "MODEL.TIMM.NAME", "resnet18")
    assert status == 0, err
    return output, read_data(output), out


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["INPUT.MIN_SIZE_TRAIN", "(96, 200)", "INPUT.MAX_SIZE_TRAIN", "210"],
        ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 24]]", "MODEL.ANCHOR_GENERATOR.OFFSET", "0.5"],
    ],
)
def test_best_anchor_is_the_best_of_all_anchors(overrides):
    grid = build_anchor_grid(load_config(CONFIG, ["MODEL.TIMM.NAME", "resnet18", *overrides]))
    rng = np.random.default_rng(0)
    height, width = 120, 170
    low = rng.uniform([0, 0], [width - 3, height - 3], (60, 2))
    extent = np.minimum(rng.uniform(2, 120, (60, 2)), [width, height] - low)
    boxes = np.concatenate([low, extent], axis=1)
    ours = best_anchor_ious(grid, boxes, np.tile([height, width], (60, 1)))

    new_height, new_width = grid.size(height, width)
    sides = [-(-side // 32) * 32 for side in (new_height, new_width)]
    strides = grid.generator.strides
    maps = [torch.zeros(1, 1, *[-(-side // stride) for side in sides]) for stride in strides]
    anchors = Boxes.cat(grid.generator(maps))
    corners = np.concatenate([low, low + extent], axis=1)
    corners *= np.tile([new_width / width, new_height / height], 2)
    theirs = pairwise_iou(Boxes(torch.tensor(corners, dtype=torch.float32)), anchors)
    assert ours == pytest.approx(theirs.max(dim=1).values.numpy(), abs=1e-4)


def test_anchors_of_retinanet():
    cfg = load_config(
        str(ROOT / "configs" / "retinanet_rsb_1x.yaml"), ["MODEL.TIMM.NAME", "resnet18"]
    )
    grid = build_anchor_grid(cfg)
    assert [len(cells) for cells in grid.generator.cell_anchors] == [9] * 5
    box = np.array([[100.0, 100.0, 64.0, 64.0]])
    assert 0.7 < best_anchor_ious(grid, box, np.array([[800, 1000]]))[0] <= 1


def test_page_and_sheet(page, folder):
    output, data, printed = page
    content = json.loads((folder / "datasets/rsb_sample/annotations/train.json").read_text())
    objects = len(content["annotations"])
    assert data["counts"] == dict(images=30, objects=objects, crowds=0, masks=objects)
    *classes, everything = data["stats"]
    assert everything["objects"] == objects == sum(c["objects"] for c in classes)
    for histogram in ("sizes", "ratios", "ious"):
        assert sum(everything[histogram]) == objects
    assert everything["cover"][0] == sorted(everything["cover"][0], reverse=True)
    cfg = load_config(CONFIG, [])
    sizes = dict(shortSide=max(cfg.INPUT.MIN_SIZE_TRAIN), maxSize=cfg.INPUT.MAX_SIZE_TRAIN)
    assert data["config"] == sizes
    assert len(data["images"]) == 30 and data["classes"][1] in printed
    with Image.open(output.with_suffix(".png")) as sheet:
        assert sheet.width > 1000 and sheet.height > 1000


@pytest.mark.slow  # test_report.py starts a browser for its page
def test_in_a_browser(page, browser):
    path, data, _ = page
    browser.open(path)
    assert browser.run("return document.documentElement.dataset.ready") == "true"
    assert browser.text(".tile b") == str(data["stats"][-1]["objects"])
    assert browser.count("#gallery figure") == 24 and browser.count("#gallery path") > 24
    browser.click('tr[data-class="1"] td')
    assert browser.text(".tile b") == str(data["stats"][1]["objects"])
    with_class = [i for i in data["images"] if any(t["c"] == 1 for t in i["truth"])]
    assert browser.count("#gallery figure") == min(24, len(with_class)) < 30
    browser.click("#shapes button:first-child")
    assert browser.count("#gallery path") == 0
    assert browser.console() == []


def test_unusual_data_is_reported(browse, folder):
    sample = folder / "datasets" / "rsb_sample"
    content = json.loads((sample / "annotations" / "val.json").read_text())
    annotations = [a for a in content["annotations"] if a["image_id"] != 3]
    first = {k: v for k, v in annotations[0].items() if k != "segmentation"}
    annotations += [
        {**first, "id": 1001},  # a duplicate
        {**first, "id": 1002, "bbox": [5, 5, 1, 30]},
        {**first, "id": 1003, "bbox": [500, 5, 10, 10]},  # dropped by registration
    ]
    content["annotations"] = annotations
    content["categories"].append(dict(id=9, name="<b>unused</b> & </script>"))
    path = sample / "annotations" / "odd.json"
    path.write_text(json.dumps(content))
    arguments = ["--annotations", path, "--images", sample / "val", "--output", "odd.html"]
    status, out, errors = browse(*arguments)
    assert (status, errors) == (0, [])
    for words in (
        "1 images without any annotation",
        "1 images with two boxes of one class on one another",
        "1 images with a box thinner than 4 pixels",
        "1 images with a box more than 20 times as long as wide",
        "dropped 1 of",
        "1 classes have no object: <b>unused</b> & </script>",
    ):
        assert words in out
    data = read_data(folder / "odd.html")
    assert data["images"][0]["odd"] and data["config"] is None


def test_an_error_that_would_stop_a_training_is_shown(browse):
    small = ["MODEL.TIMM.NAME", "resnet18"]
    overrides = [*small, "MODEL.ROI_HEADS.NUM_CLASSES", "55"]
    status, out, _ = browse("--config-file", CONFIG, "--num-images", "0", "--opts", *overrides)
    assert status == 0 and "Training would stop: MODEL.ROI_HEADS.NUM_CLASSES is 55" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no data set is named"),
        (["--annotations", "a.json"], "go together"),
        (["--annotations", "a.json", "--images", "datasets"], "there is no such annotation file"),
        (["--annotations", "a.json", "--images", "nothing"], "there is no folder nothing"),
        (["--annotations", "empty.json", "--images", "datasets/rsb_sample/val"], "no usable"),
        (["--dataset", "nothing"], "no data set is registered as 'nothing'"),
        (["--dataset", "coco_2017_val"], "cannot be read"),
        (["--dataset", "x", "--output", "datasets"], "is a folder"),
        (["--dataset", "x", "--output", "/proc/no/x.html"], "cannot write to the folder"),
        (["--config-file", "none.yaml"], "there is no file none.yaml"),
    ],
)
def test_bad_arguments(browse, arguments, message):
    status, _, errors = browse(*arguments)
    assert status == 2 and len(errors) == 1 and message in errors[0]


NAMES = ["$$", "$1_$5", "_hidden", "<!--<script>", "汽车", "100 %{x}", "a\nb"]


def test_large_and_long_images_and_names_that_look_like_markup(browse, tmp_path):
    size = (2400, 1800)
    Image.new("RGB", size, (90, 90, 90)).save(tmp_path / "$a_$b.jpg")
    # Enlarged for its labels, it would have more pixels than a picture of matplotlib may have.
    Image.new("RGB", (5000, 8)).save(tmp_path / "long.png")
    count = len(NAMES)
    images = [
        dict(id=i, file_name="$a_$b.jpg", width=size[0], height=size[1])
        for i in range(1, count + 1)
    ]
    images.append(dict(id=99, file_name="long.png", width=5000, height=8))
    objects = [
        dict(id=i, image_id=i, category_id=i, bbox=[600, 400, 1200, 800], area=960000, iscrowd=0)
        for i in range(1, count + 1)
    ]
    # Only some of the annotations have masks.
    objects[0]["segmentation"] = [[600, 400, 1800, 400, 1800, 1200, 600, 1200]]
    objects.append(dict(objects[1], id=100, bbox=[0, 0, 90, 90], image_id=1))
    objects.append(dict(objects[1], id=101, bbox=[5, 1, 9, 5], image_id=99))
    categories = [dict(id=i, name=name) for i, name in enumerate(NAMES, start=1)]
    path = tmp_path / "$x_$y.json"
    path.write_text(json.dumps(dict(images=images, annotations=objects, categories=categories)))
    output = tmp_path / "page.html"
    status, _, errors = browse("--annotations", path, "--images", tmp_path, "--output", output)
    assert (status, errors) == (0, [])
    assert read_data(output)["classes"] == NAMES
    with Image.open(output.with_suffix(".png")) as sheet:
        assert sheet.width == 1600 and sheet.height < 1600
        pixels = np.asarray(sheet)
    # Each image is drawn at the size of its place: its gray has a known area, with thin lines.
    gray = (pixels == 90).all(axis=-1).sum()
    width, height = 388, 388 * size[1] // size[0]
    assert gray == pytest.approx(count * width * height, rel=0.2)
