"""No picture, table or logger ends a training; an error of the training does."""

import json
import logging
import os

import pytest
from detectron2.utils import events
from torch.utils.tensorboard import SummaryWriter

from rsb_d2.engine import pictures
from tests.helpers.runs.scripted_training import ScriptedTrainer, make_config, train


class Failure(Exception):
    pass


def fail(*args, **kwargs):
    raise Failure("on $purpose")


FAILING = {
    "curves": (pictures, "draw_curves", "curves.png"),
    "detections": (pictures, "draw_detections", "detections.png"),
    "TensorBoard": (SummaryWriter, "add_scalar", "TensorboardXWriter"),
    "metrics.json at the end": (events.JSONWriter, "close", "JSONWriter"),
    "the log": (events.CommonMetricPrinter, "write", "CommonMetricPrinter"),
}


@pytest.fixture
def cfg(sample_data, tmp_path):
    return make_config(
        *(sample_data, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2"),
        *("SOLVER.BEST_METRIC", "bbox/AP", "INPUT.MIN_SIZE_TEST", "32"),
    )


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_writer_does_not_end_the_training(cfg, tmp_path, monkeypatch, caplog, name):
    owner, function, named = FAILING[name]
    monkeypatch.setattr(owner, function, fail)
    with caplog.at_level(logging.WARNING, "rsb_d2.engine"):
        train(cfg, [1.0, 2.0])
    assert {"model_final.pth", "model_best.pth"} <= set(os.listdir(tmp_path))
    warnings = [r.getMessage() for r in caplog.records if "on $purpose" in r.getMessage()]
    assert warnings and all(named in w and len(w.splitlines()) == 1 for w in warnings)
    if "Writer" in named or "Printer" in named:
        assert len(warnings) == 1  # not again at each write
    if named != "JSONWriter":
        lines = (tmp_path / "metrics.json").read_text().splitlines()
        assert json.loads(lines[-1])["bbox/AP"] == 2.0


@pytest.mark.parametrize("method", ["run_step", "_evaluate"])
def test_an_error_in_the_training_ends_it(cfg, tmp_path, monkeypatch, method):
    monkeypatch.setattr(ScriptedTrainer, method, fail)
    with pytest.raises(Failure):
        train(cfg, [1.0, 2.0])
