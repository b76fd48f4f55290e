"""tools/check.py: a report on a training before it starts, compared with the files themselves."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision

from rsb_d2.addons.workbench.check import as_text, check, kmeans
from rsb_d2.addons.workbench.sample import make_sample_data
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.programs import call_tool

CONFIG = str(CONFIGS / "frcnn_rsb_sample.yaml")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check") / "sample"
    make_sample_data(str(folder), num_train=12, num_val=4, image_size=64)
    return folder


def options(folder, kind):
    sets = [
        [f"{kind}_{split}", str(folder / "annotations" / f"{split}.json"), str(folder / split)]
        for split in ("train", "val")
    ]
    opts = ["DATASETS.COCO_JSON", repr(sets), "DATASETS.TRAIN", f"('{kind}_train',)"]
    return [*opts, "DATASETS.TEST", f"('{kind}_val',)", "OUTPUT_DIR", str(folder / "output")]


def test_figures_are_those_of_the_files(sample):
    opts = ["SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "(15,)"]
    report = check(CONFIG, [*options(sample, "figures"), *opts])
    assert report["errors"] == []
    for found, split in zip(report["datasets"], ("train", "val")):
        content = json.loads((sample / "annotations" / f"{split}.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        labels = [names[a["category_id"]] for a in content["annotations"]]
        assert found["images"] == len(content["images"]) and found["objects"] == len(labels)
        assert found["classes"] == {name: labels.count(name) for name in names.values()}
    schedule = report["schedule"]
    assert schedule["epochs"] == 30 * 4 / 12 and schedule["steps_in_epochs"] == [15 * 4 / 12]
    assert schedule["rate_by_rule"] == pytest.approx(0.0002 * 4 / 16)
    assert report["duplicates"]["train_and_val"] == 0
    assert "everything starts from random weights" in " ".join(report["warnings"])
    assert json.loads(json.dumps(report)) == report
    assert "10 epochs" in as_text(report)


def test_sizes_by_kmeans_are_the_geometric_means_of_separate_clusters():
    generator = np.random.default_rng(0)
    clusters = [generator.uniform(size, 1.3 * size, 10 * size) for size in (10, 40, 160)]
    expected = [round(float(np.exp(np.log(c).mean()))) for c in clusters]
    assert kmeans(generator.permutation(np.concatenate(clusters)), 3) == expected
    assert kmeans(np.full(7, 52.4), 5) == [52]


def test_images_in_both_splits_are_found(sample, tmp_path):
    folder = tmp_path / "sample"
    shutil.copytree(sample, folder)
    shutil.copy(folder / "train" / "000003.jpg", folder / "val" / "000002.jpg")
    report = check(CONFIG, options(folder, "duplicated"))
    assert report["duplicates"]["examples"] == [
        [str(folder / "train" / "000003.jpg"), str(folder / "val" / "000002.jpg")]
    ]
    assert any("1 images of val are in train as well" in w for w in report["warnings"])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.BASE_LR", "0.01"], "BASE_LR 0.01 is more than ten times 5e-05"),
        (["INPUT.MIN_SIZE_TRAIN", "(16,)", "INPUT.MAX_SIZE_TRAIN", "16"], "raise INPUT.MIN_SIZE"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[512], [512], [512], [512], [512]]"], "no anchor with"),
    ],
)
def test_warnings(sample, opts, message):
    report = check(CONFIG, [*options(sample, "warned"), *opts])
    assert any(message in warning for warning in report["warnings"]), report["warnings"]


def test_the_program_reports_errors_of_a_training(sample, tmp_path):
    opts = [*options(sample, "stopped"), "MODEL.WEIGHTS", "gone.pth"]
    arguments = ("--config-file", CONFIG, "--opts", *opts)
    status, out, err = call_tool("check", tmp_path, *arguments)
    assert status == 1 and "there is no file gone.pth" in out.splitlines()[-1]
    status, out, err = call_tool("check", tmp_path, "--config-file", "no.yaml")
    assert status == 2 and len(err.splitlines()) == 1
    assert not (sample / "output").exists()


def test_fresh_modules_of_a_fine_tuning(sample, tmp_path):
    model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    opts = ["MODEL.WEIGHTS", str(tmp_path / "weights.pth"), "MODEL.DEVICE", "cpu"]
    opts += ["MODEL.RETINANET.NUM_CLASSES", "4", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    config = str(CONFIGS / "retinanet_torchvision.yaml")
    report = check(config, [*options(sample, "fresh"), *opts])
    assert report["errors"] == [] and report["weights"]["format"] == "torchvision detector"
    assert report["weights"]["fresh"] == ["head.cls_score"]


def test_damaged_test_images(sample, tmp_path):
    folder = tmp_path / "sample"
    shutil.copytree(sample, folder)
    path = folder / "val" / "000002.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    report = check(CONFIG, options(folder, "damaged"))
    assert [e for e in report["errors"] if "1 of 4 images of damaged_val cannot be used" in e]
    for mode, text in {"skip": "skipped", "partial": "read as far as they go"}.items():
        report = check(CONFIG, [*options(folder, "damaged"), "INPUT.DAMAGED_IMAGES", mode])
        assert report["errors"] == []
        assert f"1 of 4 images are damaged and {text}" in " ".join(report["warnings"])
