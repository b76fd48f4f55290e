"""Whole runs in parts of a batch, with averaged weights: killed and resumed, in two processes."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from rsb_d2.addons.workbench.sample import make_sample_data
from tests.helpers.paths import CONFIGS, ROOT

HELPERS = ROOT / "tests" / "helpers"
ON = [
    *("SOLVER.ACCUMULATE_STEPS", "2", "MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.9"),
    *("SOLVER.BEST_METRIC", "ema/bbox/AP"),
]
LAMB = ["SOLVER.OPTIMIZER", "LAMB", "SOLVER.WARMUP_EPOCHS", "1"]
# Nothing is drawn but images and flips, and all images have one size, so that neither a process nor
# a part samples otherwise than the whole.
FIXED = [
    *("--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml")),
    *("DATASETS.SAMPLE_DATA", "", "MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.NORM_EVAL", "True"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0", "MODEL.RPN.NMS_THRESH", "1.0"),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.5"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "40", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.OPTIMIZER", "SGD"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.05", "SOLVER.WARMUP_ITERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "4", "TEST.EVAL_PERIOD", "2"),
    *("SOLVER.AMP.ENABLED", "False"),
]


def run(folder, *command):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_never_stopped(tmp_path):
    make_sample_data(str(tmp_path / "datasets" / "rsb_sample"), num_train=8, num_val=3)
    stdout = run(tmp_path, HELPERS / "kill_and_resume.py", tmp_path, *ON, *LAMB)
    report = json.loads(stdout.splitlines()[-1])
    assert report == {"kills": 10, "different": [], "leftovers": []}
    final, averaged = (
        torch.load(tmp_path / "killed" / name, weights_only=True)
        for name in ("model_final.pth", "model_final_ema.pth")
    )
    assert all(torch.equal(final["ema"][n], w) for n, w in averaged["model"].items())


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("detectron2.utils.absent") is None and not torch.cuda.is_available(),
    reason="Detectron2's main gives a model on the CPU the index of a GPU",
)
def test_two_processes_in_parts_are_one_process_without(tmp_path):
    make_sample_data(str(tmp_path / "datasets" / "rsb_sample"), num_train=16, num_val=5)
    program = HELPERS / "two_processes.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    run(tmp_path, program, *FIXED, *ON, "SOLVER.ACCUMULATE_STEPS", "1", "OUTPUT_DIR", one)
    run(tmp_path, *launcher, program, *FIXED, *ON, "OUTPUT_DIR", two)
    expected, found = (
        torch.load(path / "model_final.pth", weights_only=True) for path in (one, two)
    )
    for key in ("model", "ema"):
        for name, weight in expected[key].items():
            torch.testing.assert_close(found[key][name], weight, rtol=1e-5, atol=1e-6, msg=name)
    metrics = [json.loads((p / "metrics.json").read_text().splitlines()[-1]) for p in (one, two)]
    assert metrics[0]["ema/bbox/AP50"] == pytest.approx(metrics[1]["ema/bbox/AP50"], abs=1e-3)
