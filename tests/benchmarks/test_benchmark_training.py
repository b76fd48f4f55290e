"""The sub-commands evaluation and training of tools/benchmark.py, at tiny sizes."""

import argparse
import json

import numpy as np
import pytest
import torch

from benchmarks import evaluation, profiling, training
from benchmarks.report import add_ratios, contenders, format_report
from rsb_d2 import UserError


def call(module, *arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    module.add_arguments(parser)
    report = module.run(parser.parse_args(arguments))
    add_ratios(report)
    json.dumps(report)
    return report, format_report(report)


EVALUATION = ["--images", "6", "--detections", "20", "--classes", "3", "--image-size", "120x160"]
TRAINING = ["--image-size", "64x96"]


def check_rows(report, names, rows):
    assert [row["what"] for row in report["rows"]] == rows
    for row in report["rows"]:
        assert contenders(row) == names
        assert all(row[n]["min"] <= row[n]["median"] <= row[n]["max"] for n in names)
        assert all(len(row[n]["values"]) == report["settings"]["runs"] for n in names)
        assert list(row["ratio"]) == names[1:]
    assert list(report["memory"]) == names and min(report["memory"].values()) > 2**20


@pytest.fixture(autouse=True)
def memory_of_ours_alone(monkeypatch):
    """Measured in truth, in a process of its own; that of the others in the same way."""

    def peak_memory_alone(prepare, args, name, **kwargs):
        if name != "ours":
            return 2**21
        return profiling.peak_memory_alone(prepare, args, name, **kwargs)

    for module in (evaluation, training):
        monkeypatch.setattr(module, "peak_memory_alone", peak_memory_alone)


@pytest.fixture(autouse=True, scope="module")
def models_built_once():
    """Runs that the tests share: their steps are too small to be seen, and stock's has no dtype."""
    build, built = training._Run, {}

    def shared(args, name):
        key = name, args.dtype if name == "ours" else ""
        if key not in built:
            built[key] = build(args, name)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_Run", shared)
        yield build


@pytest.mark.slow
def test_evaluation():
    report, text = call(evaluation, *EVALUATION, "--profile")
    assert report["comparison"]["passed"] and "twelve figures" in text
    compiled = ["stock, COCOeval_opt"] if evaluation._HAS_COMPILED else []
    check_rows(report, ["stock, pycocotools", *compiled, "ours"], ["boxes", "masks"])
    assert ("COCOeval_opt is absent" in text) == (not compiled)
    assert "COCOevalEvaluateAccumulate" in report["profiles"]["ours, masks"]


def test_evaluation_that_differs_is_not_timed(monkeypatch):
    original = evaluation._Evaluator.figures

    def figures(self, task):
        found = original(self, task)
        return found + 1e-9 * (isinstance(self.evaluator, evaluation.COCOEvaluator))

    monkeypatch.setattr(evaluation._Evaluator, "figures", figures)
    report, text = call(evaluation, *EVALUATION)
    assert not report["comparison"]["passed"] and "rows" not in report
    assert "NOT THE SAME" in text and "1.0e-09" in text


def test_detections_are_made_from_the_seed():
    one, other = (evaluation.make_detections(3, 10, 4, (60, 80), seed=s) for s in (0, 0))
    assert one == other
    truth, results = one
    assert len(results) == 30 and len(truth["annotations"]) > 5
    boxes = np.array([r["bbox"] for r in results])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [80 + 1e-9, 60 + 1e-9]).all()
    assert truth != evaluation.make_detections(3, 10, 4, (60, 80), seed=1)[0]


@pytest.mark.slow
def test_training(monkeypatch):
    monkeypatch.setattr(training, "_FILES", 4)
    monkeypatch.setattr(training, "_LOADED_BATCHES", 2)
    report, text = call(training, *TRAINING, "--loader-workers", "0", "--profile")
    assert report["comparison"]["passed"] and "loss_rpn_cls" in text
    rows = ["an iteration", "of it the forward pass", "the backward pass", "the optimizer"]
    check_rows(report, ["stock", "ours"], rows)
    assert "% of an iteration" in text
    assert list(report["profiles"]) == ["stock", "ours"]
    assert "convolution" in report["profiles"]["ours"]


@pytest.mark.slow
def test_lower_precision_is_compared_by_the_sum_of_the_losses():
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    args = parser.parse_args([*TRAINING, "--dtype", "bfloat16"])
    losses = {name: training._Run(args, name).losses() for name in ("stock", "ours")}
    assert losses["stock"]["loss_rpn_cls"] != losses["ours"]["loss_rpn_cls"]
    comparison = training._compare(losses, is_low=True)
    assert comparison["passed"] and "3e-02 allowed" in comparison["text"]
    assert not training._compare(losses, is_low=False)["passed"]


@pytest.mark.slow  # as of the evaluation above
def test_training_that_differs_is_not_timed(monkeypatch, models_built_once):
    original = models_built_once.losses

    def losses(self):
        return {
            k: v + 0.01 * (self.optimizer.__class__ is torch.optim.AdamW)
            for k, v in original(self).items()
        }

    monkeypatch.setattr(models_built_once, "losses", losses)
    report, text = call(training, *TRAINING)
    assert not report["comparison"]["passed"] and "rows" not in report and "memory" not in report
    assert "NOT THE SAME" in text


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (evaluation, ["--images", "0"], "--images is 0; it must be 1 or more"),
        (evaluation, ["--image-size", "big"], "--image-size is 'big'"),
        (training, ["--batch", "0"], "--batch is 0; it must be 1 or more"),
        (training, ["--device", "tpu9"], "--device"),
    ],
)
def test_mistakes(module, arguments, message):
    with pytest.raises(UserError, match=message):
        call(module, *arguments)
