"""Jobs of torchrun's that go on by themselves when a process of theirs is killed."""

import importlib.util
import json
import socket

import pytest
import torch

from rsb_d2.addons.workbench.sample import make_sample_data
from tests.engine.test_processes import FIXED, check_equal_weights
from tests.helpers.kill_and_resume import differences, evaluations
from tests.helpers.killed_job import Job, kill_at_random, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("detectron2.utils.absent") is None
        and not torch.cuda.is_available(),
        reason="Detectron2's main gives a model on the CPU the index of a GPU",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mended")
    make_sample_data(str(folder / "datasets" / "rsb_sample"), num_train=16, num_val=6)
    return folder


def options(iterations, period):
    return [
        *("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period)),
        *("SOLVER.CHECKPOINT_KEEP", "2", "TEST.EVAL_PERIOD", str(3 * period)),
        *("DATALOADER.NUM_WORKERS", "1", "SOLVER.AMP.ENABLED", "False"),
    ]


def final(job):
    return torch.load(job.output / "model_final.pth", weights_only=True)


def test_twenty_kills_at_random_moments_change_nothing(folder):
    opts = options(60, 2)
    whole = Job(folder, "whole", ["--standalone", "--nproc_per_node=2"], opts)
    try:
        assert whole.wait() == 0, whole.text()[-3000:]
    finally:
        whole.end()
    launcher = ["--standalone", "--nproc_per_node=2", "--max-restarts=20"]
    job = Job(folder, "killed", launcher, opts)
    try:
        moments = ["any", "checkpoint", "start", "evaluation", "any"] * 4
        kills = kill_at_random(job, moments, seed=7)
        print(kills)
        assert job.wait() == 0, job.text()[-3000:]
    finally:
        job.end()
    assert len(kills) == 20 and any(writing for _, _, writing in kills)
    assert {rank for _, rank, _ in kills} == {0, 1}
    different = differences(final(whole), final(job))
    different += differences(*(evaluations(j.output) for j in (whole, job)), "metrics.json")
    best = [json.loads((j.output / "best.json").read_text()) for j in (whole, job)]
    assert different + differences(*best, "best.json") == []
    assert not list(job.output.glob("*.tmp"))
    for line in (job.output / "metrics.json").read_text().splitlines():
        json.loads(line)


def test_a_job_goes_on_with_one_process_less(folder):
    """A machine is lost, here a torchrun of its own with all that it has started."""
    opts = [*FIXED[2:], "TEST.VAL_LOSS", "False", "INPUT.CROP.ENABLED", "False"]
    opts += ["SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "3"]
    alone = Job(folder, "alone", ["--standalone", "--nproc_per_node=1"], opts)
    try:
        assert alone.wait() == 0, alone.text()[-3000:]
    finally:
        alone.end()
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    launcher = ["--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv_backend=c10d"]
    launcher += ["--rdzv_id=elastic", f"--rdzv_endpoint=localhost:{port}"]
    stays = Job(folder, "elastic", launcher, opts)
    wait_until(lambda: can_connect(port), stays)
    goes = Job(folder, "elastic", launcher, opts, log="goes.log")
    try:
        wait_until((stays.output / "last_checkpoint").exists, stays)
        assert {*stays.workers(), *goes.workers()} == {0, 1}
        goes.end()
        first = (stays.output / "last_checkpoint").read_text()
        states = torch.load(stays.output / first, weights_only=True)["trainer"]["processes"]
        assert len(states) == 2
        assert stays.wait() == 0, stays.text()[-3000:]
    finally:
        stays.end()
        goes.end()
    assert len(final(stays)["trainer"]["processes"]) == 1
    assert final(stays)["trainer"]["data"]["num_images"] == 30 * 4
    check_equal_weights(stays.output, alone.output)


def can_connect(port):
    with socket.socket() as s:
        return s.connect_ex(("localhost", port)) == 0
