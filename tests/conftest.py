"""What all tests share.

All of them together run in two processes, a file at a time; some of them in this one process.
"""

import gc
import importlib
import json
import logging
import os
import shutil
import sys

# Before cuBLAS starts, for tests that compare bits.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch looks at it, and for what is started
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger
from PIL import Image

from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.memory import reuse_freed_memory
from tests.helpers import warm_python
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.damaged_files import jpeg
from tests.helpers.data import bad_input
from tests.helpers.devices import compute_exactly, device_params
from tests.helpers.paths import ROOT
from tests.helpers.quick_training import quick_training
from tests.helpers.runs.programs import load_program, load_tool
from tests.helpers.runs.resumable_run import make_config, train
from tests.helpers.seeded_run import make_seeded_run

reuse_freed_memory()  # as the programs do on the CPU
# Processes that tests start keep what Python has compiled for the next of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish():
    # What the imports have made stays: the garbage collector need not look through it each time.
    gc.collect()
    gc.freeze()
    # The first backward pass starts threads for devices, after which no process can be forked. A
    # fake tensor adds a device that is not there: without a GPU, start none before.
    if not torch.cuda.is_available():
        torch.ones(1, requires_grad=True).sum().backward()
    warm_python.start_server()


def pytest_sessionfinish():
    warm_python.stop_server()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape names that are not UTF-8 in captured output, which pytest-xdist cannot send."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_xdist_auto_num_workers(config):
    """Use two processes for the complete suite; for one file their start would take longer.

    Tests on a GPU mostly start kernels, which takes a core each.
    """
    tests = str(ROOT / "tests")
    if [os.path.abspath(name) for name in config.args] != [tests]:
        return 0
    return max(2, min(8, (os.cpu_count() or 1) // 2)) if config.option.markexpr == "gpu" else 2


@pytest.fixture(autouse=True, scope="session")
def working_folder_of_fixtures(tmp_path_factory):
    """The working directory outside of tests, so that nothing is written into the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("working_folder"))
        yield


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Each test starts in its own temporary folder, where ``output`` and the like are written."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def quick_starts_and_ends():
    """Those of trainings in this process.

    Programs that tests start do all of it, but for the one that kills its trainings, and
    tests/engine/test_pictures.py draws as a user does.
    """
    with quick_training():
        yield


@pytest.fixture(scope="session", params=device_params())
def device(request):
    """``"cpu"``, and ``"cuda"`` where there is a GPU: then the test is marked ``gpu``."""
    compute_exactly()
    return request.param


@pytest.fixture(autouse=True)
def exact_arithmetic(request):
    """What one test has switched on does not change the numbers of another on a GPU."""
    if "device" in request.fixturenames:
        compute_exactly()


@pytest.fixture(autouse=True)
def forgotten_log_handlers():
    """Remove the log handlers that a test has set up: their streams end with the test."""
    yield
    for name in ("detectron2", "fvcore", "rsb_d2"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def forgotten_data_sets():
    """Forget the data sets that a module has registered: others use the same names."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def little_data_originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for split in ("train", "val"):
        (folder / split).mkdir()
        for i, name in enumerate(bad_input.IMAGES):
            picture = jpeg(bad_input.WIDTH, bad_input.HEIGHT, seed=i)
            (folder / split / name).write_bytes(picture)
        (folder / f"{split}.json").write_text(json.dumps(bad_input.content()))
    return folder


@pytest.fixture
def little_data(little_data_originals, tmp_path, monkeypatch):
    """A copy of a little data set, which is the working directory; nothing of it is registered."""
    folder = tmp_path / "data"
    shutil.copytree(little_data_originals, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with catalogs_kept():
        yield folder


@pytest.fixture(scope="session")
def seeded_run(tmp_path_factory):
    """The OUTPUT_DIR of a small Faster R-CNN with weights from a seed; nobody writes into it."""
    folder = tmp_path_factory.mktemp("seeded") / "run"
    make_seeded_run(folder, "faster")
    return folder


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory):
    """A little of the sample data: ``train``, ``val`` and ``annotations``."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_sample_data(str(folder), num_train=4, num_val=3)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A working directory with some sample data where the sample config looks for it."""
    folder = tmp_path_factory.mktemp("run")
    make_sample_data(str(folder / "datasets" / "rsb_sample"), num_train=8, num_val=3)
    return folder


@pytest.fixture(scope="session")
def kept_run(run_folder):
    """A run of eight iterations that keeps its two newest checkpoints, resumed after four."""
    output = str(run_folder / "kept")
    opts = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINT_KEEP", "2", "OUTPUT_DIR", output]
    with catalogs_kept():
        train(make_config(run_folder, "SOLVER.MAX_ITER", "4", *opts))
        train(make_config(run_folder, "SOLVER.MAX_ITER", "8", *opts, resume=True), resume=True)
    return run_folder / "kept"


@pytest.fixture(scope="module")
def switch_folder(tmp_path_factory):
    """The data and the output of the trainings with switches."""
    folder = tmp_path_factory.mktemp("switches")
    make_sample_data(str(folder / "data"), num_train=8, num_val=2)
    with catalogs_kept():
        yield folder


@pytest.fixture
def train_net(monkeypatch):
    """A function that runs train_net.py in this process and returns its error message."""
    program = load_program(ROOT / "train_net.py")
    # Setting up the log is for good in a process.
    module = importlib.import_module("rsb_d2.config.setup")  # not the function of that name
    monkeypatch.setattr(module, "default_setup", lambda *_: pytest.fail("went on"))

    def run(*arguments):
        config = str(bad_input.CONFIG)
        given = ["--config-file", config, *arguments]
        position = max(i for i, word in enumerate(given) if word == "--config-file") + 2
        flags = [word for word in given[position:] if word.startswith("--")]
        words = [word for word in given[position:] if word not in flags]
        base = [*bad_input.SMALL]
        if given[position - 1] != config:
            base = []  # the mistake is in the file: nothing may override it
        args = default_argument_parser().parse_args([*given[:position], *flags, *base, *words])
        with pytest.raises(SystemExit) as e:
            program.main(args)
        return str(e.value.code)

    return run


@pytest.fixture
def tool(seeded_run, monkeypatch, capsys):
    """A function that runs a tool in this process: exit status, stdout, the lines of stderr.

    ``{run}`` in an argument stands for the seeded run.
    """

    def run(name, *arguments):
        program = load_tool(name)
        arguments = [word.replace("{run}", str(seeded_run)) for word in arguments]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        status = program.main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err.strip().splitlines()

    return run


@pytest.fixture(autouse=True, scope="module")
def size_limit_of_images():
    """Pillow's limit of an image's pixels, which sahi takes away when it is imported."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before
