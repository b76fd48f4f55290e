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
from tests.helpers.detections import read_data
from tests.helpers.paths import ROOT
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
