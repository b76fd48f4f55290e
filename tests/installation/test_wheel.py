"""The wheel in an environment without a checkout, from another folder, with spaces in all paths."""

import os
import signal
import subprocess
import time

import pytest
from PIL import Image

from tests.helpers.hub_server import WRITE, hub_server
from tests.helpers.wheel import build_wheel, install_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("a wheel"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    return install_wheel(wheel, tmp_path_factory.mktemp("installed") / "an environment")


@pytest.fixture
def environment():
    without = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in without} | {"OMP_NUM_THREADS": "2"}


def run(*command, folder, environment):
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_what_the_wheel_holds(programs, environment, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    where = "import rsb_d2; print(rsb_d2.__file__)"
    found = run(
        programs / "python", "-W", "ignore", "-c", where, folder=folder, environment=environment
    )
    assert found.startswith(str(programs.parent))
    assert "rsb-d2" in run(programs / "rsb-d2", "--help", folder=folder, environment=environment)
    # The installer and its patch: Detectron2 is there, so that nothing is installed.
    words = (programs / "rsb-d2", "install-detectron2")
    assert "nothing to do" in run(*words, folder=folder, environment=environment)
    assert list(programs.parent.glob("lib/*/site-packages/rsb_d2/**/detectron2-0.6.patch"))


@pytest.mark.slow
def test_the_demo_until_its_first_checkpoint(programs, environment, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    output = folder / "output" / "resnet50_rsb_sample"
    with open(folder / "log.txt", "w") as log:
        demo = subprocess.Popen(
            [programs / "rsb-d2", "demo"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(output / "metrics.json", demo, folder)
        os.killpg(demo.pid, signal.SIGTERM)  # ends a training after its step, with a checkpoint
        wait_for(output / "last_checkpoint", None, folder)
    finally:
        demo.kill()
        demo.wait()
    checkpoint = output / (output / "last_checkpoint").read_text().strip()
    assert checkpoint.stat().st_size > 10e6
    assert sorted(p.name for p in folder.iterdir()) == ["datasets", "log.txt", "output"]


@pytest.mark.slow
def test_a_detector_from_the_hub_in_another_environment(
    wheel, programs, environment, seeded_run, tmp_path
):
    Image.effect_noise((64, 48), 90).convert("RGB").save(tmp_path / "a.png")
    with hub_server(tmp_path / "cache") as hub:
        environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": WRITE}
        environment["HF_HOME"] = str(tmp_path / "home")
        words = (programs / "rsb-d2", "push", seeded_run, "me/shapes")
        run(*words, folder=tmp_path, environment=environment)
        environment |= {"HF_TOKEN": "", "HF_HOME": str(tmp_path / "another home")}
        others = install_wheel(wheel, tmp_path / "another environment")
        words = (others / "rsb-d2", "predict", "--weights", "hf://me/shapes", "a.png")
        assert "1 image" in run(*words, folder=tmp_path, environment=environment)
    assert (tmp_path / "predictions" / "results.json").is_file()


def wait_for(path, process, folder):
    for _ in range(1200):
        if path.is_file() and path.stat().st_size:
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.5)
    pytest.fail((folder / "log.txt").read_text()[-3000:])
