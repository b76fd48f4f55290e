"""Accuracy of an image classifier against timm's own count."""

import json

import numpy as np
import pytest
import torch
from timm.utils import accuracy

from rsb_d2.pretraining.evaluation import ClassificationEvaluator


def evaluate(scores, labels, classes, output_dir="", batch=7):
    evaluator = ClassificationEvaluator(classes, output_dir)
    for start in range(0, len(labels), batch):
        inputs = [{"label": int(label)} for label in labels[start : start + batch]]
        evaluator.process(inputs, scores[start : start + batch])
    return evaluator.evaluate()


def test_accuracy_equals_timms(tmp_path, device):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(20, (300,), generator=generator)
    scores = torch.randn(300, 20, generator=generator)
    scores[torch.arange(300), labels] += 1.5
    classes = [f"class {i}" for i in range(20)]
    found = evaluate(scores.to(device), labels, classes, str(tmp_path))["cls"]
    top1, top5 = (x.item() for x in accuracy(scores, labels, topk=(1, 5)))
    assert 20 < top1 < top5 < 95
    assert found["top1"] == pytest.approx(top1, rel=1e-6)
    assert found["top5"] == pytest.approx(top5, rel=1e-6)
    written = json.loads((tmp_path / "classification.json").read_text())
    assert written["images"] == 300 and written["top1"] == found["top1"]
    for i, name in enumerate(classes):
        of_class = labels == i
        (expected,) = accuracy(scores[of_class], labels[of_class])
        assert found[f"top1-{name}"] == pytest.approx(expected.item(), rel=1e-6)
        assert written["classes"][i]["images"] == of_class.sum()


def test_nan_is_wrong():
    scores = torch.tensor([[np.nan, 0.0], [0.0, np.nan], [np.nan, np.nan]])
    found = evaluate(scores, torch.zeros(3, dtype=torch.int64), ["a", "b"])["cls"]
    assert found["top1"] == found["top5"] == pytest.approx(100 / 3)
    assert np.isnan(found["top1-b"])  # no image
