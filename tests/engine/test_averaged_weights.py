"""MODEL_EMA: the average itself, its evaluations and files, and runs that are resumed."""

import json
import logging
import shutil

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from rsb_d2 import Trainer
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.config.setup import setup
from tests.helpers.devices import reproducible
from tests.helpers.kill_and_resume import SMALL, differences
from tests.helpers.paths import CONFIGS

DECAY = 0.8
ON = ["MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", str(DECAY)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    make_sample_data(str(folder / "data"), num_train=8, num_val=3)
    return folder


def make_args(folder, output, *opts, resume=False, eval_only=False):
    data = [
        [f"averaged_{s}", f"{folder}/data/annotations/{s}.json", f"{folder}/data/{s}"]
        for s in ("train", "val")
    ]
    return default_argument_parser().parse_args(
        [
            *("--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml")),
            *(["--resume"] if resume else []),
            *(["--eval-only"] if eval_only else []),
            *(*SMALL, "DATASETS.COCO_JSON", str(data), "DATASETS.TRAIN", "('averaged_train',)"),
            *("DATASETS.TEST", "('averaged_val',)", "MODEL.DEVICE", "cpu", "SEED", "3"),
            *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "2"),
            *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.ACCUMULATE_STEPS", "2"),
            *("SOLVER.BASE_LR", "0.01", "OUTPUT_DIR", str(output), *opts),
        ]
    )


def train(*args, resume=False, **kwargs):
    trainer = Trainer(setup(make_args(*args, resume=resume, **kwargs)))
    trainer.resume_or_load(resume=resume)
    trainer.train()


def load(path):
    return torch.load(path, weights_only=True, map_location="cpu")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, device):
    output = tmp_path_factory.mktemp("run")
    opts = [*ON, "SOLVER.BEST_METRIC", "ema/bbox/AP50", "MODEL.DEVICE", device]
    with reproducible(device):
        train(folder, output, *opts)
    return output


def test_the_average_follows_the_formula(run):
    """average <- decay * average + (1 - decay) * weights, from the weights after the first step."""
    checkpoints = [load(run / f"model_{i:07d}.pth") for i in range(4)]
    average = {name: weight.double() for name, weight in checkpoints[0]["model"].items()}
    for checkpoint in checkpoints:
        assert checkpoint["ema"].keys() == average.keys()
        for name, weight in checkpoint["model"].items():
            if weight.is_floating_point():
                average[name] = DECAY * average[name] + (1 - DECAY) * weight.double()
            else:  # the counters of batch norm
                average[name] = weight
            expected = average[name].to(weight.dtype)
            torch.testing.assert_close(checkpoint["ema"][name], expected, rtol=1e-5, atol=1e-7)
    last = checkpoints[-1]
    moved = [n for n, w in last["model"].items() if not torch.allclose(w, last["ema"][n], 1e-4)]
    assert any(n.endswith("running_mean") for n in moved) and any("fpn" in n for n in moved)


def test_files_and_metrics(run):
    final = load(run / "model_final.pth")
    averaged = load(run / "model_final_ema.pth")
    assert not differences(averaged["model"], final["ema"])
    assert averaged["class_names"] == final["class_names"]
    assert (run / "last_checkpoint").read_text() == "model_final.pth"
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    names = set().union(*lines)
    of_model = {n for n in names if n.startswith(("bbox/", "val_"))}
    assert {"bbox/AP50", "val_total_loss"} < of_model
    assert {n[4:] for n in names if n.startswith("ema/")} == of_model
    last = lines[-1]
    assert last["ema/val_total_loss"] != last["val_total_loss"]
    best = json.loads((run / "best.json").read_text())
    assert best["metric"] == "ema/bbox/AP50"
    of_best = load(run / f"model_{best['best']['iterations'] - 1:07d}.pth")
    assert not differences(load(run / "model_best.pth")["model"], of_best["ema"])
    assert (run / "inference" / "coco_instances_results.json").exists()
    assert (run / "ema" / "inference" / "coco_instances_results.json").exists()


def evaluate(folder, output, *opts):
    return train_net.main(make_args(folder, output, *opts, eval_only=True))


def test_evaluation_of_a_file(folder, run, tmp_path, caplog, device):
    expected = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    weights = ["MODEL.WEIGHTS", str(run / "model_final_ema.pth"), "TEST.OPTIMIZE", "False"]
    weights += ["MODEL.DEVICE", device]
    alone = evaluate(folder, tmp_path, *weights)
    for name, value in alone["bbox"].items():
        assert value == pytest.approx(expected[f"ema/bbox/{name}"], nan_ok=True)
    weights[1] = str(run / "model_final.pth")
    both = evaluate(folder, tmp_path, *weights, *ON)
    assert both["ema"]["bbox"] == pytest.approx(alone["bbox"], nan_ok=True)
    assert both["bbox"]["AP"] == pytest.approx(expected["bbox/AP"], nan_ok=True)
    weights[1] = str(run / "model_final_ema.pth")
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        assert "ema" not in evaluate(folder, tmp_path, *weights, *ON)
    assert "has no averaged weights in addition to the model" in caplog.text


def resumable(run, folder):
    folder.mkdir()
    shutil.copy(run / "model_0000001.pth", folder)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    return folder


def test_a_resumed_run_ends_with_the_same_average(folder, run, tmp_path, device):
    output = resumable(run, tmp_path / "resumed")
    opts = [*ON, "SOLVER.BEST_METRIC", "ema/bbox/AP50", "MODEL.DEVICE", device]
    with reproducible(device):
        train(folder, output, *opts, resume=True)
    for name in ("model_final.pth", "model_final_ema.pth"):
        assert not differences(load(output / name), load(run / name))
