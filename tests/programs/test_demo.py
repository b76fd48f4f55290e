"""tools/demo.py: the commands that it runs; the trainings themselves are left out."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from rsb_d2.config.loading import load_config
from tests.helpers.paths import ROOT


@pytest.fixture
def run(monkeypatch):
    """Run the program on a processor with or without bfloat16; its exit status and commands."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(bfloat16, *statuses):
        commands, left = [], list(statuses)

        def run_command(command, cwd):
            assert cwd == str(ROOT)
            commands.append(command)
            return subprocess.CompletedProcess(command, left.pop(0))

        monkeypatch.setattr(sys, "argv", ["demo.py"])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: bfloat16)
        monkeypatch.setattr(module.subprocess, "run", run_command)
        return module.main(), commands

    return call


@pytest.mark.parametrize("bfloat16", [True, False])
def test_pretraining_then_the_detector_from_it(run, capsys, bfloat16):
    status, (data, *trainings) = run(bfloat16, 0, 0, 0)
    assert status == 0 and data == [sys.executable, "tools/sample_data.py"]
    cfgs = []
    for python, program, flag, config, *opts in trainings:
        assert (python, program, flag) == (sys.executable, "train_net.py", "--config-file")
        cfgs.append(load_config(str(ROOT / config), opts))
    pretraining, detector = cfgs
    assert pretraining.MODEL.META_ARCHITECTURE == "ImageClassifier"
    assert detector.MODEL.WEIGHTS == os.path.join(pretraining.OUTPUT_DIR, "model_final.pth")
    plain = load_config(str(ROOT / "configs" / "pretrain" / "resnet50_rsb_sample.yaml"), [])
    if bfloat16:
        assert pretraining == plain
    else:  # shorter, which is said, and evaluated once
        assert pretraining.SOLVER.WARMUP_ITERS < pretraining.SOLVER.MAX_ITER < plain.SOLVER.MAX_ITER
        assert all(cfg.TEST.EVAL_PERIOD == cfg.SOLVER.MAX_ITER for cfg in cfgs)
        said = f"{pretraining.SOLVER.MAX_ITER} iterations of pretraining in float32 instead of 300"
        assert plain.SOLVER.MAX_ITER == 300 and said in capsys.readouterr().out


def test_a_failed_training_ends_it(run):
    status, commands = run(True, 0, 3)
    assert status == 3 and len(commands) == 2
