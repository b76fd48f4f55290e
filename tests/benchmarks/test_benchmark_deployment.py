"""tools/benchmark.py deployment: what it compares, and its report; no time is asserted."""

import argparse

import numpy as np
import pytest

from benchmarks.report import add_ratios, format_report
from benchmarks.running import deployment
from rsb_d2 import UserError
from rsb_d2.addons.export import Detections

IMAGE = np.zeros((4, 4, 3), np.uint8)


def parse(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    deployment.add_arguments(parser)
    return parser.parse_args(words)


def detector(shift=0.0, num=3, calls=None):
    def detect(image):
        assert image is IMAGE
        if calls is not None:
            calls.append(shift)
        boxes = np.arange(4.0 * num).reshape(num, 4) + shift
        return Detections(boxes, np.linspace(0.9, 0.5, num), np.arange(num))

    return detect


def test_the_same_detections_are_timed():
    calls = []
    detectors = {"PyTorch": detector(), "OpenVINO": detector(0.005, calls=calls)}
    report = {"title": "", **deployment.compare_and_time(detectors, IMAGE, 0.05, runs=3)}
    assert report["comparison"]["passed"] and "3 detections" in report["comparison"]["text"]
    for row in report["rows"]:
        assert [len(row[name]["values"]) for name in detectors] == [3, 3]
    assert len(calls) == 1 + 1 + 3
    add_ratios(report)
    assert "OpenVINO" in format_report(report) and len(row["ratio"]["OpenVINO"]["values"]) == 3


@pytest.mark.parametrize(
    "other, says",
    [
        (detector(0.02), "OpenVINO: 3 of 3 detections are missing"),
        (detector(num=0), "OpenVINO: 3 of 3 detections are missing and 0 are new"),
    ],
)
def test_others_are_not_timed(other, says):
    found = deployment.compare_and_time({"PyTorch": detector(), "OpenVINO": other}, IMAGE, 0.05, 3)
    assert not found["comparison"]["passed"] and says in found["comparison"]["text"]
    assert "rows" not in found


def test_nothing_is_no_comparison():
    nothing = {"PyTorch": detector(num=0), "OpenVINO": detector(num=0)}
    found = deployment.compare_and_time(nothing, IMAGE, 0.05, 1)
    assert (
        not found["comparison"]["passed"] and "nothing is detected" in found["comparison"]["text"]
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (("--image-size", "640"), "--image-size is '640'; write height x width"),
        (("--threads", "0"), "--threads is 0; it must be 1 or more"),
    ],
)
def test_options_that_mean_nothing(words, says):
    with pytest.raises(UserError, match=says):
        deployment.run(parse(*words))


def test_memory_is_reused_with_glibc_alone(monkeypatch):
    monkeypatch.setattr(deployment, "reuse_freed_memory", lambda: False)
    with pytest.raises(UserError, match="--reuse-memory: the C library is not glibc"):
        deployment.run(parse("--reuse-memory"))


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [(), ("--fixed",)])
def test_the_whole_measurement_of_a_small_image(fixed):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    report = deployment.run(parse("--image-size", "96x128", "--threads", "1", *fixed))
    assert report["comparison"]["passed"], report["comparison"]["text"]
    assert list(report["rows"][0])[1:] == ["PyTorch", "optimized", "onnxruntime", "OpenVINO"]
    assert report["settings"]["openvino"].startswith("20")
