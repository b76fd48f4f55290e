"""Listing a folder: each file once, and what is passed over by its name."""

import os

import pytest

from rsb_d2.data.images import is_image_name
from rsb_d2.files import files_below


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


def test_a_link_to_a_hidden_folder_is_followed(tmp_path):
    make(tmp_path, ".store/a.jpg")
    (tmp_path / "images").symlink_to(".store")
    assert listed(tmp_path)[0] == ["images/a.jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.mpo", "a.tif", "a.webp", "x/a.b.png"])
def test_names_of_images(name):
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a.heic", "a.h5", "a.pdf", "a.mpg", "a", ".jpg", "._a.jpg"])
def test_names_of_other_files(name):
    assert not is_image_name(name)
