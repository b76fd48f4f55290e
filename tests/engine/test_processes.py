"""Several processes: they train, evaluate and resume as one does."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser

from rsb_d2 import UserError
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.engine import launch
from rsb_d2.engine.launch import _name_of_meeting
from tests.helpers import two_processes, warm_python
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import as_in_a_process_of_its_own

PROGRAM = two_processes.__file__

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("detectron2.utils.absent") is None and not torch.cuda.is_available(),
    reason="Detectron2's main gives a model on the CPU the index of a GPU",
)

# All images are padded to 64 x 64, and nothing is drawn but images and flips: every anchor is
# sampled, and each image has the same number of proposals, all of which are, so that the mean over
# two processes is that over one.
FIXED = [
    *("--config-file", str(ROOT / "configs" / "frcnn_rsb_sample.yaml")),
    *("MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.NORM_EVAL", "True"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0", "MODEL.RPN.NMS_THRESH", "1.0"),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.5"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "40", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.OPTIMIZER", "SGD"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.05", "SOLVER.WARMUP_ITERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "0"),
    *("MODEL.DEVICE", "cpu"),
]
# Two processes want two GPUs, where there is one.
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    make_sample_data(str(folder / "datasets" / "rsb_sample"), num_train=16, num_val=5)
    return folder


def run(
    folder, output, *flags, opts=(), launcher=(sys.executable,), program=PROGRAM, **environment
):
    return subprocess.run(
        [*launcher, str(program), *flags, *FIXED, *opts, "OUTPUT_DIR", str(folder / output)],
        cwd=folder,
        env={**os.environ, **ON_CPU, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_alone(folder, output, *flags):
    """The same in this one process."""
    words = [*flags, *FIXED, "OUTPUT_DIR", str(folder / output)]
    with as_in_a_process_of_its_own(folder):
        two_processes.main(default_argument_parser().parse_args(words))


@pytest.fixture(scope="module")
def one(folder):
    run_alone(folder, "one")
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder):
    """Two processes, as torchrun starts them; a slow test starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"TORCHELASTIC_RUN_ID": "two", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **ON_CPU}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = list(map(str, [warm_python.path(), PROGRAM, *FIXED, "OUTPUT_DIR", folder / "two"]))
    processes = {}
    for rank in "01":
        environment = {**os.environ, **job, "RANK": rank, "LOCAL_RANK": rank}
        log = folder / f"two.{rank}.log"
        with open(log, "w") as f:
            process = subprocess.Popen(words, cwd=folder, env=environment, stdout=f, stderr=f)
        processes[process] = log
    for process, log in processes.items():
        assert process.wait(300) == 0, log.read_text()[-5000:]
    return folder / "two"


def images_of(output, num_processes):
    """The images of each iteration, of all processes together; the last word counts."""
    images = {}
    for rank in range(num_processes):
        lines = (output / f"images.{rank}").read_text().splitlines()
        of_rank = dict(json.loads(line) for line in lines)
        for iteration, names in sorted(of_rank.items()):
            images.setdefault(iteration, []).extend(names)
    return images


def check_equal_weights(output, expected, key="model"):
    weights, others = (
        torch.load(path / "model_final.pth", weights_only=True)[key] for path in (output, expected)
    )
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-5, atol=1e-6, msg=name)


def test_two_processes_train_to_the_weights_of_one(one, two):
    assert images_of(one, 1) == images_of(two, 2)
    assert len(images_of(one, 1)) == 6
    check_equal_weights(two, one)
    at_3, at_6 = (
        torch.load(two / f"model_000000{i}.pth", weights_only=True)["model"] for i in (2, 5)
    )
    trained = [name for name, weight in at_3.items() if (weight - at_6[name]).abs().max() > 1e-3]
    assert len(trained) > 10


def test_two_processes_evaluate_each_image_once(one, two):
    expected, detections = map(read_detections, (one, two))
    assert len(detections) == len(expected) > 50
    assert [(d["image_id"], d["category_id"]) for d in detections] == [
        (d["image_id"], d["category_id"]) for d in expected
    ]
    for a, b in zip(expected, detections):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-2)
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)


def read_detections(output):
    detections = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    return sorted(detections, key=lambda d: (d["image_id"], -d["score"]))


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_one_process_resumes_it(folder, one):
    died = run(folder, "died", "--num-gpus", "2", DIE_AT="4")
    assert died.returncode == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL" in died.stderr
    assert (folder / "died" / "last_checkpoint").read_text() == "model_0000002.pth"
    run_alone(folder, "died", "--resume")
    assert images_of(folder / "died", 1) != images_of(one, 1)  # the first three are half of them
    (folder / "died" / "images.0").write_text(
        "".join(
            line + "\n"
            for line in (folder / "died" / "images.0").read_text().splitlines()
            if len(json.loads(line)[1]) == 4
        )
    )
    expected = images_of(one, 1)
    assert images_of(folder / "died", 1) == {i: expected[i] for i in (3, 4, 5)}
    check_equal_weights(folder / "died", one)


def test_num_gpus_under_torchrun_is_an_error(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun sets it")
    args = default_argument_parser().parse_args(["--num-gpus", "2"])
    with pytest.raises(UserError, match="torchrun sets the number of processes"):
        launch(lambda args: pytest.fail("went on"), args)


def test_restarted_processes_find_each_other_and_not_the_earlier_ones():
    """torchrun has one store for all of them, with the addresses of those that were killed."""
    server = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)

    def meet(rank, late):
        store = dist.TCPStore("127.0.0.1", server.port, None, False)
        time.sleep(0.2 * (rank == late))
        return _name_of_meeting(store, rank, 3)

    names = []
    for late in (0, 1, 2):
        with ThreadPoolExecutor(3) as pool:
            names.append(set(pool.map(meet, range(3), [late] * 3)))
    assert [len(of_one) for of_one in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


@pytest.mark.slow
def test_a_signal_ends_two_processes_with_one_checkpoint(folder):
    output = folder / "stopped"
    command = [sys.executable, str(PROGRAM), "--num-gpus", "2", *FIXED, "OUTPUT_DIR", str(output)]
    printed = folder / "stopped.txt"  # no pipe, which would stop the run once it is full
    with open(printed, "w") as out:
        process = subprocess.Popen(
            [*command, "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000"],
            cwd=folder,
            env={**os.environ, **ON_CPU},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 200
        while not (output / "images.1").exists() and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, printed.read_text()
    assert "Stopped by a signal after" in printed.read_text()
    checkpoint = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)
    assert len(checkpoint["trainer"]["processes"]) == 2


@pytest.mark.slow
def test_two_processes_in_parts_with_averaged_weights_equal_one(folder):
    opts = ["MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.9", "SOLVER.AMP.ENABLED", "False"]
    opts += ["SOLVER.BEST_METRIC", "ema/bbox/AP", "TEST.EVAL_PERIOD", "3"]
    for output, parts, launcher in (("whole", 1, [sys.executable]), ("parts", 2, TORCHRUN)):
        words = [*opts, "SOLVER.ACCUMULATE_STEPS", str(parts)]
        result = run(folder, output, opts=words, launcher=launcher)
        assert result.returncode == 0, result.stderr
    for key in ("model", "ema"):
        check_equal_weights(folder / "parts", folder / "whole", key)
