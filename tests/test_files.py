"""Files that are written completely or not at all, the causes of errors, listings, addresses."""

import errno
import os
import shutil

import pytest
import torch

from rsb_d2 import UserError, files
from rsb_d2.checkpoint.files import save_torch
from rsb_d2.files import (
    escape_address,
    files_below,
    whole_file,
    whole_folder,
)


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(folder, **options):
    return [
        [os.path.relpath(path, folder) + "/" * path.endswith("/") for path in paths]
        for paths in files_below(str(folder), **options)
    ]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    make(tmp_path, "in/b.jpg", "in/a/c.jpg", "out/d.jpg", "out/deep/e.jpg", "unrelated.jpg")
    links = {
        "in/link": "out",
        "in/again": "out/deep",
        "in/a/up": "in",
        "in/top": ".",
        "in/z": "in/a",
    }
    for link, target in {**links, "out/back": "in"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    files, passed_over = listed(tmp_path / "in")
    assert {os.path.basename(f) for f in files} == {"b.jpg", "c.jpg", "d.jpg", "e.jpg"}
    assert len(files) == 4 and "a/c.jpg" in files
    assert {"a/up/", "top/", "z/"} <= set(passed_over) and len(passed_over) == 5


def test_hidden_files_pipes_and_outputs(tmp_path):
    make(tmp_path, "a.jpg", "._a.jpg", ".cache/b.jpg", "out/c.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone")
    files, passed_over = listed(tmp_path, without=str(tmp_path / "out"))
    assert files == ["a.jpg", "nowhere.jpg"]
    assert passed_over == ["._a.jpg", ".cache/", "pipe.jpg"]


@pytest.fixture
def full_disk(monkeypatch):
    """Writing fails; creating and reading files does not."""

    def write(self, data):
        with files.errors_of_writing(self._shown):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files._Output, "write", write)


def test_an_unreadable_source_is_not_reported_as_an_unwritable_output(tmp_path):
    output = tmp_path / "out.bin"
    output.write_bytes(b"before")
    with pytest.raises(FileNotFoundError) as error, whole_file(str(output)) as f:
        f.write(b"half")
        open(tmp_path / "source.bin", "rb")
    assert error.value.filename == str(tmp_path / "source.bin")
    assert output.read_bytes() == b"before" and os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("size", [1, 10_000_000])  # in the buffer, and beyond it
def test_a_full_disk_is_reported_with_the_output(tmp_path, full_disk, size):
    with pytest.raises(UserError, match="cannot write .*out.bin: No space left") as error:
        with whole_file(str(tmp_path / "out.bin")) as f:
            f.write(bytes(size))
    assert isinstance(error.value.__cause__, OSError) and os.listdir(tmp_path) == []


def test_a_full_disk_below_torch(tmp_path, full_disk):
    with pytest.raises(UserError, match="cannot write .*a.pth: No space left"):
        save_torch(str(tmp_path / "a.pth"), {"a": torch.zeros(1_000_000)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "fail, message",
    [
        (lambda source, new: open(source), "^cannot read .*source: No such file"),
        (lambda source, new: shutil.copyfile(source, f"{new}/a"), "^cannot read .*source: No such"),
        (lambda source, new: open(f"{new}/no/a", "w"), "^--output: cannot write .*out: No such"),
        (lambda source, new: _fail(errno.ENOSPC), "^--output: cannot write .*out: No space left"),
        (lambda source, new: _fail(errno.EIO), "^--output: .*out was not written: Input/output"),
    ],
)
def test_errors_while_a_folder_is_written(tmp_path, fail, message):
    with pytest.raises(UserError, match=message):
        with whole_folder(str(tmp_path / "out"), "--output: ") as new:
            fail(str(tmp_path / "source"), new)
    assert os.listdir(tmp_path) == []


def _fail(number):
    raise OSError(number, os.strerror(number))


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with whole_folder(str(out)) as new:
        open(os.path.join(new, "a"), "w").close()
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["a"]
    assert os.listdir(tmp_path / "deep") == ["out"]
    with pytest.raises(UserError, match="cannot write"):
        with whole_folder(str(out / "a" / "b")):
            pass


# Left as they are: what https://url.spec.whatwg.org/#path-percent-encode-set does not have.
@pytest.mark.parametrize(
    "address, requested",
    [
        ("https://h/a.jpg?w=1&h=%20", "https://h/a.jpg?w=1&h=%20"),
        ("https://h/a#1.jpg", "https://h/a%231.jpg"),
        ("https://h/50%.jpg", "https://h/50%25.jpg"),
        ("https://h/a%20b c.jpg", "https://h/a%20b%20c.jpg"),
        ("https://h/é\udce9.jpg", "https://h/%C3%A9%E9.jpg"),
        ("http://bücher.example:80/(a)+b,c~@.jpg", "http://xn--bcher-kva.example:80/(a)+b,c~@.jpg"),
        ("s3://bucket/a#b c.jpg", "s3://bucket/a#b c.jpg"),
        ("my/a#b%.jpg", "my/a#b%.jpg"),
    ],
)
def test_addresses(address, requested):
    assert escape_address(address) == requested
    assert escape_address(requested) == requested
