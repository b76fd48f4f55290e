"""The installer of Detectron2 0.6: what it leaves unchanged, the patch, and the wheel."""

import base64
import difflib
import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.helpers.paths import ROOT

PROGRAM = ROOT / "tools" / "install_detectron2.py"


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "packaging" / "install_detectron2.py"
    spec = importlib.util.spec_from_file_location("install_detectron2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_program(*args, python_path=None):
    """Run the installer as a person does, with pip cut off from every index."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    environment.pop("PYTHONPATH", None)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def fake_package(folder, text):
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text(text)
    return folder


# The program


def test_an_importable_detectron2_is_named_and_left_alone(tmp_path):
    fake_package(tmp_path, '__version__ = "9.8"\n')
    result = run_program(python_path=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "detectron2 9.8" in result.stdout
    assert str(tmp_path / "detectron2") in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detectron2"]


def test_a_broken_detectron2_is_reported_not_overwritten(tmp_path):
    fake_package(tmp_path, "import a_module_that_is_not_there\n")
    result = run_program(python_path=tmp_path)
    assert result.returncode == 1
    assert "a_module_that_is_not_there" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_another_sdist_is_refused(tmp_path):
    sdist = tmp_path / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        tar.add(PROGRAM, "pb1-detectron2-0.6/setup.py")
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    result = run_program("--sdist", sdist, "--wheel-dir", tmp_path / "wheels")
    assert result.returncode == 1
    assert digest in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "wheels").exists()


def test_a_failed_download_is_an_error_without_a_traceback(tmp_path):
    result = run_program("--wheel-dir", tmp_path / "wheels")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("install_detectron2: pip did not download")
    assert not (tmp_path / "wheels").exists()


# The patch


LETTERS = "".join(f"{letter}\n" for letter in "abcdefghijklmnopqrstuvwxyz")
CHANGED = LETTERS.replace("c\n", "c\n\n--- C\n").replace("n\n", "").replace("z\n", "Z\nzz\n")


def diff(old, new, path="detectron2/a.py"):
    old_path = f"a/{path}" if old else "/dev/null"
    lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
    return "".join(difflib.unified_diff(*lines, old_path, f"b/{path}"))


def test_a_patch_changes_and_adds_files(tool):
    files = {"detectron2/a.py": LETTERS.encode(), "LICENSE": b"free"}
    patch = "Why.\n\n" + diff(LETTERS, CHANGED) + diff("", LETTERS, "detectron2/b.py")
    assert patch.count("\n@@ ") == 4
    patched = tool.apply_patch(files, patch)
    assert files == {"detectron2/a.py": LETTERS.encode(), "LICENSE": b"free"}
    assert {path: data.decode() for path, data in patched.items()} == {
        "detectron2/a.py": CHANGED,
        "detectron2/b.py": LETTERS,
        "LICENSE": "free",
    }


@pytest.mark.parametrize(
    "content, message",
    [
        (LETTERS.replace("p", "P"), "detectron2/a.py differs at line 11"),  # in a hunk's context
        ("\n" + LETTERS, "detectron2/a.py differs"),  # shifted
        (CHANGED, "detectron2/a.py differs"),  # already patched
        (None, "detectron2/a.py is not"),
    ],
)
def test_a_patch_that_does_not_fit_is_an_error_that_names_the_file(tool, content, message):
    files = {} if content is None else {"detectron2/a.py": content.encode()}
    with pytest.raises(tool.InstallError, match=message):
        tool.apply_patch(files, diff(LETTERS, CHANGED))


def test_a_patch_does_not_overwrite_a_file_that_it_adds(tool):
    with pytest.raises(tool.InstallError, match="detectron2/b.py is there"):
        tool.apply_patch({"detectron2/b.py": b""}, diff("", LETTERS, "detectron2/b.py"))


# The wheel


SOURCE = {
    "LICENSE": b"free",
    "setup.py": b"raise SystemExit",
    "detectron2/__init__.py": b'__version__ = "0.6"\n',
    "detectron2/model_zoo/configs/COCO-Detection/a.yaml": b"VERSION: 2\n",
    "projects/PointRend/point_rend/__init__.py": b"",
}


def test_the_wheel_is_pure_python_and_complete(tool, tmp_path):
    wheel = tool.write_wheel(tool.wheel_content(SOURCE, "What is changed."), tmp_path / "wheels")
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert content["detectron2/__init__.py"] == SOURCE["detectron2/__init__.py"]
    assert "detectron2/model_zoo/configs/COCO-Detection/a.yaml" in content
    assert "detectron2/projects/point_rend/__init__.py" in content
    assert "setup.py" not in content

    info = "detectron2-0.6.dist-info"
    metadata = content[f"{info}/METADATA"].decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert "Requires-Dist: fvcore>=0.1.5,<0.1.6" in required
    assert not any("torch" in line or "opencv" in line for line in required)
    assert metadata.endswith("\n\nWhat is changed.")
    assert "Root-Is-Purelib: true" in content[f"{info}/WHEEL"].decode()

    record = dict(line.split(",", 1) for line in content[f"{info}/RECORD"].decode().splitlines())
    assert record.pop(f"{info}/RECORD") == ","
    assert record.keys() == content.keys() - {f"{info}/RECORD"}
    for name, entry in record.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).decode()
        assert entry == f"sha256={digest.rstrip('=')},{len(content[name])}"


def test_a_wheel_that_cannot_be_written_leaves_nothing(tool, tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tool.zipfile.ZipFile, "writestr", full)
    with pytest.raises(tool.InstallError, match=os.strerror(errno.ENOSPC)):
        tool.write_wheel(tool.wheel_content(SOURCE, ""), tmp_path)
    assert list(tmp_path.iterdir()) == []
