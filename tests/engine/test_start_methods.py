"""Whatever ends a process, those that it has started end with it, with each start method.

The start method of a program is set before anything else; ``forkserver`` is Python 3.14's.
"""

import multiprocessing
import signal
import sys

import pytest

from rsb_d2.checkpoint import find_newest_complete
from tests.helpers.damaged_files import jpeg
from tests.helpers.kill_and_resume import SMALL
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.runs.left_behind import Job

METHODS = ["fork", "spawn", "forkserver"]
ENDINGS = ["normal", "error", "SIGTERM", "SIGKILL"]

# Of the package the one module, as the package would take seconds to import. The loader belongs to
# the module, so it is there until Python ends. The pool and the other loader are of the user's own.
LOADING = f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT / "rsb_d2" / "data")!r})
from torch.utils.data import DataLoader
from workers import WorkerLoader

if __name__ == "__main__":
    ending = sys.argv[1]
    multiprocessing.set_forkserver_preload(["torch.utils.data"])
    images = iter(WorkerLoader(range(10**6), batch_size=None, num_workers=2))
    assert [int(next(images)) for _ in range(4)] == [0, 1, 2, 3]
    if ending in ("normal", "error"):
        own = iter(DataLoader(range(10**6), num_workers=1))
        assert int(next(own)) == 0
    with multiprocessing.Pool(1) as pool:  # which it ends by SIGTERM
        assert pool.map(abs, [-1]) == [1]
    pool.join()
    print("running", flush=True)
    if ending == "error":
        raise RuntimeError("as meant")
    while ending != "normal":
        next(images)
"""

# Python imports it before the program.
SITECUSTOMIZE = """
import multiprocessing, os
multiprocessing.set_start_method(os.environ["START_METHOD"])
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a program with a start method."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def start(method, program, *arguments, folder=tmp_path):
        command = [sys.executable, "-W", "ignore", program, *arguments]
        path = f"{site}:{ROOT}"
        environment = {"PYTHONPATH": path, "START_METHOD": method, "CUDA_VISIBLE_DEVICES": ""}
        return Job(command, tmp_path / "log", folder, **environment)

    return start


QUICK = [("forkserver", "error"), ("forkserver", "SIGKILL")]


@pytest.mark.parametrize(
    "method, ending",
    [
        pytest.param(m, e, marks=[] if (m, e) in QUICK else pytest.mark.slow)
        for m in METHODS
        for e in ENDINGS
    ],
)
def test_workers_end_with_the_process_that_they_load_for(start, tmp_path, method, ending):
    (tmp_path / "loading.py").write_text(LOADING)
    with start(method, tmp_path / "loading.py", ending) as job:
        if ending in ("normal", "error"):
            assert job.end() == int(ending == "error")
            assert ("as meant" in job.text()) == (ending == "error")
            return
        job.wait_for("running")
        assert len(job.left()) >= 3
        number = getattr(signal, ending)
        assert job.end(number, group=ending == "SIGTERM") == -number


def train_net(*opts, num_processes=1):
    config = ["--config-file", CONFIGS / "frcnn_rsb_sample.yaml", "--num-gpus", num_processes]
    workers = ["DATALOADER.NUM_WORKERS", "2", "MODEL.DEVICE", "cpu"]
    return [ROOT / "train_net.py", *config, *SMALL, *workers, *opts]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_training_leaves_nothing_behind(start, run_folder, tmp_path, method, ending):
    output = tmp_path / "run"
    iterations = "2" if ending == "normal" else "100000"
    rate = "1e30" if ending == "error" else "0.001"
    opts = ["SOLVER.MAX_ITER", iterations, "SOLVER.BASE_LR", rate, "OUTPUT_DIR", output]
    if ending == "normal":
        opts += ["TEST.EVAL_PERIOD", "2", "TEST.VAL_LOSS", "False"]
    else:
        opts += ["TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "100000"]
    with start(method, *train_net(*opts), folder=run_folder) as job:
        if ending == "normal":
            assert job.end() == 0
            assert (output / "model_final.pth").is_file()
        elif ending == "error":
            assert job.end() == 1
            assert "error: iteration" in job.text()
        else:
            job.wait_for("iter: 19")
            if ending == "SIGKILL":
                assert job.end(signal.SIGKILL) == -signal.SIGKILL
                return
            assert job.end(signal.SIGTERM, group=True) == 143
            assert find_newest_complete(str(output))
        assert "Traceback" not in job.text()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_evaluation_leaves_nothing_behind(start, run_folder, tmp_path, method):
    opts = ["SOLVER.MAX_ITER", "100000", "TEST.EVAL_PERIOD", "1", "OUTPUT_DIR", tmp_path / "run"]
    with start(method, *train_net(*opts), folder=run_folder) as job:
        job.wait_for("Start inference on")
        assert job.end(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_processes_of_a_launch_leave_nothing_behind(start, run_folder, tmp_path, method):
    opts = ["SOLVER.MAX_ITER", "100000", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", tmp_path / "run"]
    with start(method, *train_net(*opts, num_processes=2), folder=run_folder) as job:
        job.wait_for("iter: 19")
        assert job.end(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["normal", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_leaves_nothing_behind(start, seeded_run, tmp_path, method, ending):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8 if ending == "normal" else 400):
        (folder / f"{i}.jpg").write_bytes(jpeg(64, 48, seed=i))
    tool = [ROOT / "tools" / "predict.py", "--run", seeded_run, folder, "--workers", "2"]
    with start(method, *tool, "--output", tmp_path / "out") as job:
        if ending == "normal":
            assert job.end() == 0
            return
        job.wait(lambda: len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) > 3)
        number = getattr(signal, ending)
        assert job.end(number, group=ending == "SIGTERM") == -number


def test_every_start_method_is_tested():
    assert set(METHODS) == set(multiprocessing.get_all_start_methods())
