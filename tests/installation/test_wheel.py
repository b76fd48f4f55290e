"""The wheel in an environment without a checkout, from another folder, with spaces in all paths."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from email.parser import Parser

import pytest
from PIL import Image

import rsb_d2
from tests.helpers.hub_server import WRITE, hub_server
from tests.helpers.paths import ROOT

FILES = ("setup.py", "rsb_d2_cli.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def build_wheel(folder):
    """Build the wheel from a copy of the checkout in an empty folder; return its path."""
    source = folder / "source"
    for name in ("rsb_d2", "configs", "packaging"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("rsb_d2-*.whl")
    return wheel


def install_wheel(wheel, folder):
    """Install a wheel into a new environment, which finds other packages in the current one.

    Returns:
        Path: the folder of the environment's programs.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    programs = folder / "bin"
    # --python before the path of other packages, which also has an editable rsb_d2.
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Files *.pth of a folder that is named here, such as the one of an editable rsb_d2, have no
    # effect.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


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


MODELS = """
import os, torch, rsb_d2
print(rsb_d2.__file__)
print(rsb_d2.model_zoo.get_config_file("frcnn_rsb_1x.yaml"))
assert not os.listdir(".")
model = rsb_d2.model_zoo.get("frcnn_rsb_1x.yaml", device="cpu").eval()
with torch.no_grad():
    assert model([{"image": torch.zeros(3, 64, 96)}])[0]["instances"].image_size == (64, 96)
for row in rsb_d2.model_zoo.list():
    rsb_d2.model_zoo.get_config(row.name)
"""


@pytest.mark.slow
def test_what_the_wheel_holds(programs, environment, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    words = (programs / "python", "-W", "ignore", "-c", MODELS)
    found = run(*words, folder=folder, environment=environment).splitlines()
    assert len(found) == 2 and all(path.startswith(str(programs.parent)) for path in found)
    assert "rsb-d2" in run(programs / "rsb-d2", "--help", folder=folder, environment=environment)
    # The installer and its patch: Detectron2 is there, so that nothing is installed.
    words = (programs / "rsb-d2", "install-detectron2")
    assert "nothing to do" in run(*words, folder=folder, environment=environment)
    (site,) = programs.parent.glob("lib/python*/site-packages")
    assert list(site.glob("rsb_d2/**/detectron2-0.6.patch"))
    shipped = {p.name for p in (site / "rsb_d2" / "model_zoo" / "configs").iterdir()}
    assert shipped == {p.name for p in (ROOT / "configs").iterdir()}
    about = site / f"rsb_d2-{rsb_d2.__version__}.dist-info"
    metadata = Parser().parsestr((about / "METADATA").read_text(), headersonly=True)
    assert metadata["License"] == "Apache-2.0"
    assert "Paper, https://arxiv.org/abs/2110.00476" in metadata.get_all("Project-URL")
    (license,) = about.rglob("LICENSE")
    assert license.read_text() == (ROOT / "LICENSE").read_text()


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
