"""tools/benchmark.py: what it compares, and the shape of its reports; no time is asserted."""

import argparse
import functools
import json

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import ResNet

from benchmarks import (
    arguments,
    inference,
    startup,
    stock,
    timing,
)
from benchmarks.report import add_ratios, format_report
from rsb_d2 import UserError

CPU = torch.device("cpu")


def parse(module, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    module.add_arguments(parser)
    return parser.parse_args(words)


def check_summary(summary, runs):
    assert len(summary["values"]) == runs
    assert 0 < summary["min"] <= summary["median"] <= summary["max"]


def test_contenders_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = timing.measure(calls, runs=3, warmup=2)
    assert "".join(order) == "ab" * 5
    assert [len(found[name]["values"]) for name in "ab"] == [3, 3]


def test_ratios_are_of_pairs():
    a, b = timing.summarise([1.0, 4.0, 9.0]), timing.summarise([1.0, 2.0, 3.0])
    assert timing.ratio(a, b)["values"] == [1.0, 2.0, 3.0]
    assert timing.ratio(a, b)["median"] == 2.0


def test_an_error_of_a_contender_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        timing.measure({"a": lambda: None, "b": lambda: 1 / 0}, runs=1)


def test_stock_is_detectron2s_own_with_our_weights():
    cfg = stock.stock_config()
    assert cfg.MODEL.BACKBONE.NAME == build_resnet_fpn_backbone.__name__
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    model = build_model(cfg)
    assert type(model.backbone.bottom_up) is ResNet
    ours = build_model(stock.our_config())
    stock.seed_weights(ours)
    weights = stock.to_stock(ours.state_dict())
    assert weights.keys() == model.state_dict().keys()  # nothing is left at its initial value
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def both():
    return stock.build_both()


@pytest.mark.slow
@torch.no_grad()
def test_comparison_tells_what_differs(both):
    theirs, ours = both
    images = stock.make_images((64, 96), 1)
    assert inference.compare(theirs, ours, images)["passed"]
    predictor = ours.roi_heads.box_predictor
    bias = predictor.bbox_pred.bias.clone()
    predictor.bbox_pred.bias += 0.1  # of the width of a box
    found = inference.compare(theirs, ours, images)
    predictor.bbox_pred.bias.copy_(bias)
    assert not found["passed"]


@pytest.mark.slow
@torch.no_grad()
def test_the_load_is_that_of_a_real_image(both):
    parts = inference.Parts(both[0], stock.make_images((320, 448), 1))
    assert [len(p) for p in parts.proposals] == [1000]
    assert [len(d) for d in parts.detections] == [100]


@pytest.mark.slow
def test_report_of_inference(monkeypatch, both):
    monkeypatch.setattr(inference, "build_both", lambda device: both)
    # Of ours in truth, in a process of its own; that of stock is measured in the same way.
    measured = inference.peak_memory_alone

    def peak_memory_alone(prepare, args, name, **kwargs):
        return measured(prepare, args, name, **kwargs) if name == "ours" else 2**21

    monkeypatch.setattr(inference, "peak_memory_alone", peak_memory_alone)
    for model in both:  # a thousand take seconds
        monkeypatch.setitem(model.proposal_generator.post_nms_topk, False, 50)
    args = parse(inference, "--image-size", "64x96", "--batch", "2", "--runs", "2", "--profile")
    report = inference.run(args)
    add_ratios(report)
    assert report["comparison"]["passed"]
    rows = {row["what"]: row for row in report["rows"]}
    assert list(rows) == [
        "end to end",
        "backbone and FPN",
        "RPN",
        "ROI heads",
        "of it the pooler",
    ]
    for row in rows.values():
        for name in ("stock", "ours"):
            check_summary(row[name], 2)
        assert row["ratio"]["ours"]["values"] == [
            a / b for a, b in zip(row["stock"]["values"], row["ours"]["values"])
        ]
    assert report["settings"]["proposals"] > 0 and "load" in report["settings"]
    assert all(size > 2**20 for size in report["memory"].values())
    assert "conv" in report["profiles"]["stock"]
    json.dumps(report)
    text = format_report(report)
    assert "stock / ours" in text and "peak memory, ours" in text and "end to end" in text


def test_a_failed_comparison_has_no_ratio(monkeypatch, both):
    monkeypatch.setattr(inference, "build_both", lambda device: both)
    monkeypatch.setattr(inference, "SCORE_TOLERANCE", -1.0)
    report = inference.run(parse(inference, "--image-size", "64x96"))
    add_ratios(report)
    text = format_report(report)
    assert "rows" not in report
    assert "NOT THE SAME" in text and "stock / ours" not in text


@pytest.mark.slow
def test_lower_precision_is_compared_by_ap(monkeypatch, both):
    with pytest.raises(UserError, match="--weights a model that was trained on the sample data"):
        inference.run(parse(inference, "--dtype", "bfloat16"))
    monkeypatch.setattr(inference, "build_both", lambda device: both)
    monkeypatch.setattr(inference, "peak_memory_alone", lambda *args, **kwargs: 1)
    monkeypatch.setattr(inference, "_PARTS", {"end to end": inference.Parts.end_to_end})
    asked = []

    def compare_ap(weights, dtype, compile, device):
        asked.append((weights, dtype))
        return {"passed": len(asked) == 1, "text": ""}

    monkeypatch.setattr(inference, "compare_ap", compare_ap)
    args = parse(inference, "--image-size", "64x96", "--dtype", "bfloat16", "--weights", "w.pth")
    assert list(inference.run(args)["rows"][0]) == ["what", "stock", "stock, autocast", "ours"]
    assert asked == [("w.pth", torch.bfloat16)]
    assert "rows" not in inference.run(args)  # the AP of the second call is another one


@pytest.mark.parametrize("ap, passed", [((50.0, 50.09), True), ((50.0, 49.85), False)])
def test_ap_may_differ_by_a_tenth(monkeypatch, ap, passed):
    import benchmarks.sample as sample
    import rsb_d2.predictor as predictor

    values = iter(ap)
    monkeypatch.setattr(sample, "sample_config", lambda cfg: cfg)
    monkeypatch.setattr(sample, "average_precision", lambda cfg, model: next(values))
    monkeypatch.setattr(predictor, "load_detector", lambda cfg: (None, None))
    monkeypatch.setattr(inference, "optimize_for_inference", lambda *args: None)
    found = inference.compare_ap(__file__, torch.bfloat16, False, CPU)
    assert found["passed"] is passed and f"{ap[1]:.2f}" in found["text"]


def test_weights_that_detect_nothing_are_refused(monkeypatch):
    import benchmarks.sample as sample
    import rsb_d2.predictor as predictor

    monkeypatch.setattr(sample, "sample_config", lambda cfg: cfg)
    monkeypatch.setattr(sample, "average_precision", lambda cfg, model: float("nan"))
    monkeypatch.setattr(predictor, "load_detector", lambda cfg: (None, None))
    with pytest.raises(UserError, match="which no trained model has"):
        inference.compare_ap(__file__, torch.bfloat16, False, CPU)


@pytest.mark.slow
def test_report_of_startup(monkeypatch):
    # Each is started once, not once more before to warm the system's cache.
    monkeypatch.setattr(startup, "_start", functools.cache(startup._start))
    report = startup.run(parse(startup))
    add_ratios(report)
    assert report["comparison"]["passed"]
    assert [row["what"] for row in report["rows"]] == startup._WHAT
    for row in report["rows"]:
        check_summary(row["stock"], 1)
        assert "ours" in row["ratio"]


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--device", "gpu", "write cpu or cuda"),
        ("--device", "cuda:99", "finds no such GPU"),
        ("--image-size", "640", "as 640x853"),
        ("--image-size", "0x10", "as 640x853"),
        ("--batch", "0", "must be 1 or more"),
    ],
)
def test_mistakes_on_the_command_line(option, value, message):
    with pytest.raises(UserError, match=message):
        inference.run(parse(inference, option, value))


def test_the_program(tmp_path, tool):
    words = ["inference", "--image-size", "a", "--json", str(tmp_path / "none.json")]
    status, _, errors = tool("benchmark", *words)
    assert status == 2 and errors[-1].startswith("benchmark.py: error: --image-size")
    assert not (tmp_path / "none.json").exists()


def test_common_arguments():
    assert arguments.find_size("640x853") == (640, 853)
    assert arguments.find_device("cpu") == CPU
