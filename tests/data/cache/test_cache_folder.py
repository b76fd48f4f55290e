"""The folder of the cache: many processes, one that is killed, and no room or no right to write."""

import logging
import os
import signal

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from rsb_d2 import UserError
from rsb_d2.data.cache import annotation_cache
from rsb_d2.data.cache.annotation_cache import CHECKED, AnnotationSource
from tests.helpers.data.starts import is_read, start, the_file


def test_half_of_a_file_is_never_taken(files, folder, caplog):
    start(files, folder, caplog)
    whole = the_file(folder).read_bytes()
    the_file(folder).unlink()
    next(folder.glob("*.lock")).touch()  # of a process that was killed
    leftover = folder / f"{next(folder.glob('*.lock')).name[:-5]}.123.tmp"
    leftover.write_bytes(whole[:5000])
    assert is_read(start(files, folder, caplog)[1])
    assert not leftover.exists()


def run(function, *args):
    """Call a function in a process of its own, a fork of this one; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            function(*args)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def be_killed(files, folder):
    """Die where half of the file is written."""
    write = annotation_cache.write_arrays

    def killed(path, stream, finish):
        def half():
            for i, piece in enumerate(stream):
                if i == 15:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield piece

        write(path, half(), finish)

    annotation_cache.write_arrays = killed
    AnnotationSource(*files, CHECKED, str(folder)).open()


def read(files, folder, log, gate):
    """Read when the gate opens, and write down what is said and what is there."""
    with open(log, "w") as f:
        logger = logging.getLogger("rsb_d2")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(logging.StreamHandler(f))
        os.read(gate, 1)
        records = AnnotationSource(*files, CHECKED, str(folder)).open()
        print(len(records), sum(len(r["annotations"]) for r in records), file=f)


def test_process_killed_while_writing(files, folder, caplog):
    _, status = os.waitpid(run(be_killed, files, folder), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert list(folder.glob("*.tmp")) and not list(folder.glob("*.safetensors"))
    records, lines = start(files, folder, caplog)
    assert is_read(lines) and len(records) == 30
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_of_processes_that_start_together_one_reads(count, files, folder, tmp_path):
    gate, opened = os.pipe()
    logs = [tmp_path / f"{i}.log" for i in range(count)]
    children = [run(read, files, folder, log, gate) for log in logs]
    os.write(opened, bytes(count))
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
    outputs = [log.read_text().splitlines() for log in logs]
    assert [lines[-1] for lines in outputs] == ["30 120"] * count
    assert sum(is_read(lines) for lines in outputs) == 1


@pytest.mark.parametrize("name", ["file/below", "/proc/nowhere"])
def test_folder_that_cannot_be_written_is_said(name, files, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        records, lines = start(files, tmp_path / name, caplog)
        (line,) = [line for line in lines if "cannot be used" in line]
        assert line.startswith(f"The cache folder {tmp_path / name} cannot be used (")
        assert "name another folder in DATASETS.CACHE" in line
        MetadataCatalog.remove("mine")
        assert list(records) == load_coco_json(*files, "mine")


def test_full_disk_is_said(files, folder, caplog, monkeypatch):
    def full(path, stream, finish):
        list(stream)
        raise UserError(f"cannot write {path}") from OSError(28, "No space left on device")

    monkeypatch.setattr(annotation_cache, "write_arrays", full)
    records, lines = start(files, folder, caplog)
    assert any("cannot be used (No space left on device)" in line for line in lines)
    MetadataCatalog.remove("mine")
    assert list(records) == load_coco_json(*files, "mine")


def test_off(files, tmp_path, caplog):
    records, lines = start(files, "off", caplog)
    assert len(records) == 30 and not any("cache" in line for line in lines)
    assert not (tmp_path / "fvcore" / "rsb_d2" / "datasets").exists()
    start(files, "", caplog)
    assert the_file(tmp_path / "fvcore" / "rsb_d2" / "datasets")
