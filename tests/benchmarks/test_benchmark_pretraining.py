"""The sub-command pretraining of tools/benchmark.py, at tiny sizes."""

import argparse
import json

import pytest
from detectron2.data import DatasetCatalog

from benchmarks import pretraining
from benchmarks.pretraining import contenders, measure
from benchmarks.report import add_ratios, format_report
from rsb_d2 import UserError

SMALL = ["--model", "resnet18", "--train-size", "32", "--batch", "4"]


def call(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    pretraining.add_arguments(parser)
    report = pretraining.run(parser.parse_args([*SMALL, *arguments]))
    add_ratios(report)
    json.dumps(report)
    return report, format_report(report)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little to load, and memory that is not measured: test_benchmark.py does that."""
    monkeypatch.setattr(measure, "_FILES", 8)
    monkeypatch.setattr(measure, "_LOADED_IMAGES", 8)
    monkeypatch.setattr(measure, "_FILE_SIZE", (60, 80))
    monkeypatch.setattr(measure, "peak_memory_alone", lambda *_, **__: 2**21)


@pytest.mark.slow
def test_step_and_loader():
    report, text = call("--loader-workers", "0", "--peak-tflops", "0.1", "--runs", "2")
    assert report["comparison"]["passed"] and "1e-04 allowed" in text
    assert [row["what"] for row in report["rows"]] == ["a step of 4 images", "loading them"]
    for row in report["rows"]:
        assert list(row["ratio"]) == ["ours"]
        assert all(len(row[name]["values"]) == 2 for name in ("timm", "ours"))
    assert text.count("images per second of a step") == 2
    assert text.count("images per second of the loader, 0 workers") == 2
    assert measure._DATASET not in DatasetCatalog
    # A ResNet-18 has 1.81 GFLOP (multiply and add) at 224, as published, and so 3 x 2 x 1.81 in
    # training; the layers' sizes go with the square of the side, but for the classifier.
    (gflop,) = {line.split()[-4] for line in text.splitlines() if "GFLOP an image" in line}
    assert float(gflop) == pytest.approx(6 * 1.81 * (32 / 224) ** 2, rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        ["--procedure", "a2"],
        pytest.param(["--dtype", "bfloat16", "--nchw"], marks=pytest.mark.slow),
    ],
)
def test_switches_of_both(options):
    report, _ = call(*options)
    assert report["comparison"]["passed"] and len(report["rows"]) == 1


def test_what_differs_is_not_timed(monkeypatch):
    original = contenders.Step.first_loss
    monkeypatch.setattr(
        contenders.Step,
        "first_loss",
        lambda self: original(self) * (1 + 1e-3 * hasattr(self.model, "network")),
    )
    report, text = call()
    assert "rows" not in report and "NOT THE SAME" in text and "1.0e-03" in text


def test_both_load_the_same_images_of_the_same_size(tmp_path):
    from rsb_d2.pretraining.data import register_image_folders
    from tests.helpers.catalogs import catalogs_kept

    measure._make_files(str(tmp_path), 8)
    parser = argparse.ArgumentParser()
    pretraining.add_arguments(parser)
    args = parser.parse_args(SMALL)
    with catalogs_kept():
        cfg = contenders.make_config(
            args,
            *("DATASETS.IMAGE_FOLDER", [["files", str(tmp_path)]], "DATASETS.TEST", ()),
            *("DATASETS.TRAIN", ("files",), "MODEL.CLASSIFIER.NUM_CLASSES", 2),
        )
        register_image_folders(cfg)
        ours = next(contenders.our_batches(cfg))
        images, labels = next(contenders.timm_batches(cfg, str(tmp_path)))
    assert images.shape == (4, 3, 32, 32) and images.dtype == ours[0]["image"].dtype
    assert {tuple(x["image"].shape) for x in ours} == {(3, 32, 32)} and len(ours) == 4
    assert set(labels.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch", "0"], "--batch is 0; it must be 1 or more"),
        (["--batch", "5"], "mixed in pairs, so write an even one"),
        (["--model", "resnet51"], "resnet51"),
        (["--device", "tpu9"], "--device"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        call(*arguments)
