"""rsb-d2 demo: the commands that it runs; the trainings themselves are left out."""

import os
import subprocess
import sys

import pytest
import torch

import rsb_d2_cli
from rsb_d2.addons.commands import demo, make_parser
from rsb_d2.config.loading import load_config
from rsb_d2.model_zoo import get_config_file


@pytest.fixture
def run(monkeypatch):
    """Run the program on a processor with or without bfloat16; its exit status and commands."""

    def call(bfloat16, *statuses):
        commands, left = [], list(statuses)

        def run_command(command):
            assert command[:2] == [sys.executable, rsb_d2_cli.__file__]
            commands.append(make_parser().parse_args(command[2:]))
            return subprocess.CompletedProcess(command, left.pop(0))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr("rsb_d2.engine.train_step.cpu_has_bfloat16", lambda: bfloat16)
        monkeypatch.setattr(demo.subprocess, "run", run_command)
        return rsb_d2_cli.main(["demo"]), commands

    return call


@pytest.mark.parametrize("bfloat16", [True, False])
def test_pretraining_then_the_detector_from_it(run, capsys, bfloat16):
    status, (data, *trainings) = run(bfloat16, 0, 0, 0)
    assert status == 0 and data.program == "sample-data" and data.kind is None
    assert [training.program for training in trainings] == ["train", "train"]
    pretraining, detector = (load_config(get_config_file(t.config_file), t.opts) for t in trainings)
    assert pretraining.MODEL.META_ARCHITECTURE == "ImageClassifier"
    assert detector.MODEL.WEIGHTS == os.path.join(pretraining.OUTPUT_DIR, "model_final.pth")
    plain = load_config(get_config_file("pretrain/resnet50_rsb_sample"), [])
    if bfloat16:
        assert pretraining == plain
    else:  # shorter, which is reported, and evaluated once
        assert pretraining.SOLVER.WARMUP_ITERS < pretraining.SOLVER.MAX_ITER < plain.SOLVER.MAX_ITER
        cfgs = (pretraining, detector)
        assert all(cfg.TEST.EVAL_PERIOD == cfg.SOLVER.MAX_ITER for cfg in cfgs)
        said = f"{pretraining.SOLVER.MAX_ITER} iterations of pretraining in float32 instead of 300"
        assert plain.SOLVER.MAX_ITER == 300 and said in capsys.readouterr().out


def test_a_failed_training_ends_it(run):
    status, commands = run(True, 0, 3)
    assert status == 3 and len(commands) == 2
