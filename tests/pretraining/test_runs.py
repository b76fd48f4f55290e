"""A pretraining that is killed, in two processes, or in parts equals an uninterrupted one."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers.paths import ROOT
from tests.helpers.small_pretraining import make_objects, options

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# Batch norm's statistics and stochastic depth differ between processes.
FIXED = [
    *("MODEL.TIMM.NORM_EVAL", "True", "MODEL.CLASSIFIER.DROP_PATH_RATE", "0.0"),
    *("INPUT.CLASSIFIER.MIX_GROUP", "8", "SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_ITER", "4"),
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.05", "TEST.EVAL_PERIOD", "4"),
    *("MODEL.CLASSIFIER.LOSS", "ce"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_objects(folder)
    return folder


def run(folder, *words, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "flags, opts",
    [
        ((), ()),
        (("--iterations", "18"), ("SOLVER.ACCUMULATE_STEPS", "2")),
    ],
    ids=["plain", "in parts"],
)
@pytest.mark.slow
def test_a_killed_pretraining_equals_an_uninterrupted_one(folder, flags, opts, device):
    for output in ("whole", "killed"):
        shutil.rmtree(folder / output, ignore_errors=True)
    program, on_device = ROOT / "tests" / "helpers" / "kill_and_resume.py", ("MODEL.DEVICE", device)
    report = run(folder, program, "--pretraining", *flags, folder, *opts, *on_device)
    report = json.loads(report.splitlines()[-1])
    assert report == {"kills": 10, "different": [], "leftovers": []}


def train(folder, output, *opts, launcher=()):
    words = options("datasets/rsb_sample_objects", *FIXED, "OUTPUT_DIR", output, *opts)
    program = ROOT / "tests" / "helpers" / "two_processes.py"
    config = ROOT / "configs" / "pretrain" / "resnet50_rsb_a2.yaml"
    words = [*launcher, program, "--config-file", config, *words]
    run(folder, *words, CUDA_VISIBLE_DEVICES="")  # two processes would need two GPUs
    return folder / output


def images_of(output):
    """The images of each iteration, of all processes."""
    images = {}
    for path in sorted(output.glob("images.*")):
        for iteration, names in map(json.loads, path.read_text().splitlines()):
            images.setdefault(iteration, []).extend(names)
    return {iteration: sorted(names) for iteration, names in images.items()}


def load(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def whole(folder):
    return train(folder, "whole")


def check_equal(output, whole):
    assert images_of(output) == images_of(whole)
    weights, expected = load(output), load(whole)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    metrics = [
        json.loads((path / "metrics.json").read_text().splitlines()[-1]) for path in (output, whole)
    ]
    for name in metrics[1]:
        if name.startswith("cls/"):
            assert metrics[0][name] == metrics[1][name]
    counted = json.loads((output / "inference" / "classification.json").read_text())
    assert counted["images"] == 10 and sum(c["images"] for c in counted["classes"]) == 10


@pytest.mark.skipif(
    importlib.util.find_spec("detectron2.utils.absent") is None and not torch.cuda.is_available(),
    reason="Detectron2's main gives a model on the CPU the index of a GPU",
)
@pytest.mark.slow
def test_two_processes_train_as_one(folder, whole):
    """Mixing is the same, because an image and its partner are in the same process."""
    output = train(folder, "two", launcher=TORCHRUN)
    assert (output / "images.1").exists()
    check_equal(output, whole)


@pytest.mark.slow
def test_a_batch_in_parts_trains_as_one(folder, whole):
    check_equal(train(folder, "parts", "SOLVER.ACCUMULATE_STEPS", "2"), whole)
