"""train_net.py: train, resume and evaluate."""

import json
import re

import numpy as np
import pytest
import torch

from tests.helpers.runs.programs import call_train_net
from tests.helpers.runs.sample_run import CONFIG, SMALL


def call(folder, *words):
    call_train_net(folder, "--config-file", CONFIG, *words)


def read_metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(run_folder):
    """A run of three iterations that was resumed for another three."""
    output = run_folder / "output"
    call(run_folder, *SMALL, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(output))
    log = (output / "log.txt").read_text()
    at_3 = torch.load(output / "model_final.pth", weights_only=True)
    call(run_folder, "--resume", *SMALL, "OUTPUT_DIR", str(output))
    return output, at_3, log


def test_files_of_a_training(trained):
    output, _, log = trained
    names = {p.name for p in output.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {"curves.png", "detections.png"} <= names
    assert "Pictures: " in log and re.search(r"\| +AP +\| +AP50 +\|", log)
    assert json.loads((output / "inference" / "coco_instances_results.json").read_text())


def test_a_resumed_run_continues_at_the_next_iteration(trained):
    output, at_3, _ = trained
    assert "Starting training from iteration 3" in (output / "log.txt").read_text()
    at_6 = torch.load(output / "model_final.pth", weights_only=True)
    assert (at_3["iteration"], at_6["iteration"]) == (2, 5)
    steps = {int(s["step"]) for s in at_6["trainer"]["_trainer"]["optimizer"]["state"].values()}
    assert steps == {6}  # the optimizer went on, too
    assert any(not torch.equal(at_3["model"][k], v) for k, v in at_6["model"].items())
    assert [m["iteration"] for m in read_metrics(output) if "bbox/AP" in m] == [3, 6]


def test_the_same_seed_gives_the_same_weights(run_folder, trained):
    _, at_3, *_ = trained
    again = run_folder / "again"
    opts = ["SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", str(again)]
    call(run_folder, *SMALL, *opts)
    weights = torch.load(again / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(at_3["model"][k], v) for k, v in weights.items())


def evaluate(run_folder, trained, name, *opts):
    """Detections of ``--eval-only`` and of the training's own last evaluation, as bytes."""
    output, *_ = trained
    weights = str(output / "model_final.pth")
    call(
        run_folder,
        *("--eval-only", "MODEL.WEIGHTS", weights, *SMALL, *opts),
        *("OUTPUT_DIR", str(run_folder / name)),
    )
    predictions = "inference/coco_instances_results.json"
    return [(folder_ / predictions).read_bytes() for folder_ in (run_folder / name, output)]


def test_eval_only_gives_the_same_ap(run_folder, trained):
    found, expected = evaluate(run_folder, trained, "evaluation", "TEST.OPTIMIZE", "False")
    assert found == expected


def test_eval_only_with_the_optimized_model_gives_the_same_detections(run_folder, trained):
    found, expected = map(json.loads, evaluate(run_folder, trained, "optimized"))
    assert len(found) == len(expected) > 100
    # A model of six iterations has many scores that are nearly equal, so their order may differ.
    as_rows = [
        np.array(
            [[d["image_id"] * 1e4, d["category_id"] * 1e4, *d["bbox"], d["score"]] for d in ds]
        )
        for ds in (found, expected)
    ]
    distance = np.abs(as_rows[0][:, None] - as_rows[1][None]).max(axis=2)
    assert np.mean(distance.min(axis=0) < 0.01) > 0.99
