"""``DATASETS.TIMM``: archives have the images, labels and order of the folders they contain."""

import io
import os
import pickle
import sys
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import CIFAR10

from rsb_d2 import Trainer, UserError
from rsb_d2.config.loading import load_config
from rsb_d2.data.images import BadImageError
from rsb_d2.pretraining.data import register_image_folders
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.paths import CONFIGS
from tests.helpers.small_pretraining import CLASSES, make_objects, options

NAMES = ("rsb_objects_train", "rsb_objects_val")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture(autouse=True)
def own_catalogs():
    with catalogs_kept():
        yield


def files_of(folder):
    """Return (class, path) of each image, in the order of the labels."""
    names = sorted(os.listdir(folder))
    return [(n, folder / n / f) for n in names for f in sorted(os.listdir(folder / n))]


def make_tar(folder, path):
    with tarfile.open(path, "w") as tar:
        for name, file in files_of(folder):
            tar.add(file, f"{name}/{file.name}")
    return ["", str(path), ""]


def make_tar_per_class(folder, path):
    path.mkdir()
    for name in sorted(os.listdir(folder)):
        with tarfile.open(path / f"{name}.tar", "w") as tar:
            for file in sorted(os.listdir(folder / name)):
                tar.add(folder / name / file, file)
    return ["", str(path), ""]


def make_shards(folder, path, number=3, with_labels=True):
    path.mkdir()
    files = files_of(folder)
    for n in range(number):
        with tarfile.open(path / f"s-{n:02d}.tar", "w") as tar:
            for i in range(len(files) * n // number, len(files) * (n + 1) // number):
                name, file = files[i]
                tar.add(file, f"{i:05d}.jpg")
                label = str(CLASSES.index(name)).encode()
                member = tarfile.TarInfo(f"{i:05d}.cls")
                member.size = len(label)
                if with_labels:
                    tar.addfile(member, io.BytesIO(label))
    return ["wds/", str(path), f"s-{{00..{number - 1:02d}}}.tar"]


MAKERS = {
    "tar": make_tar,
    "tars": make_tar_per_class,
    "shards": make_shards,
}


def config(data, *opts, timm=None):
    words = options(data, *opts)
    if timm is not None:
        words += ["DATASETS.IMAGE_FOLDER", "[]", "DATASETS.TIMM", str(timm)]
    cfg = load_config(str(CONFIGS / "pretrain" / "resnet50_rsb_a2.yaml"), words)
    register_image_folders(cfg)
    return cfg


def batches(cfg, number=3):
    return [
        [(x["label"], x["mix_seed"], x["image"]) for x in batch]
        for batch in islice(Trainer.build_train_loader(cfg), number)
    ]


def same(found, expected):
    return all(
        a[:2] == b[:2] and torch.equal(a[2], b[2])
        for batch, other in zip(found, expected, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_batches_equal_those_of_the_folder(kind, data, tmp_path):
    """Same order, augmentation and mixing, also with workers and after resuming."""
    with catalogs_kept():
        expected = batches(config(data), 4)
    entries = [
        [name, *MAKERS[kind](data / split, tmp_path / f"{split}.{kind}")]
        for name, split in zip(NAMES, ("train", "val"))
    ]
    cfg = config(data, timm=entries)
    loader = Trainer.build_train_loader(cfg)
    assert same(batches(cfg, 4), expected)
    list(islice(loader, 1))  # workers must not share files that are open here
    with_workers = config(data, "DATALOADER.NUM_WORKERS", "2", timm=entries)
    assert same(batches(with_workers, 4), expected)
    list(islice(loader, 1))
    resumed = Trainer.build_train_loader(cfg)
    resumed.load_state_dict(loader.state_dict())
    assert [[x["label"] for x in b] for b in islice(resumed, 2)] == [
        [label for label, *_ in batch] for batch in expected[2:]
    ]


def test_a_data_set_of_torchvision(data, tmp_path):
    """It has pixels instead of files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        content = {
            "data": rng.integers(0, 256, (12, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(12)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {"label_names": [f"thing {i}" for i in range(10)]}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(meta))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        entries = [["c", "torch/cifar10", str(tmp_path), "train"]]
        opts = ("DATASETS.TRAIN", "('c',)", "DATASETS.TEST", "()")
        cfg = config(data, *opts, "MODEL.CLASSIFIER.NUM_CLASSES", "10", timm=entries)
        expected = create_dataset("torch/cifar10", str(tmp_path), split="train")
    loader = Trainer.build_train_loader(cfg)
    source, records = loader.mapper.sources["c"], loader._records
    assert len(records) == 60
    for i in (0, 7, 59):
        picture, label = expected[i]
        assert records[i]["label"] == label
        np.testing.assert_array_equal(Image.open(source.open_image(i)), picture)
    assert next(iter(loader))[0]["image"].shape == (3, 32, 32)


def test_a_bad_image_in_an_archive_is_reported(data, tmp_path):
    entry = make_tar(data / "train", tmp_path / "train.tar")
    with tarfile.open(tmp_path / "train.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo(f"{CLASSES[0]}/zz.jpg"), io.BytesIO())
    opts = ("DATASETS.TRAIN", "()", "DATASETS.TEST", "('mine',)")
    cfg = config(data, *opts, timm=[["mine", *entry]])
    with pytest.raises(BadImageError, match=r"mine\[6\]: the file is empty"):
        list(Trainer.build_test_loader(cfg, "mine"))


BAD = {
    "no entry": ([["a", "", "b"]], "DATASETS.TIMM has the entry .*four strings each"),
    "nowhere": ([["m", "", "none.tar", ""]], "data set m: .*none.tar: there is no such file or"),
    "one pass": (
        [["m", "tfds/mnist", "", "train"]],
        "tfds can be read only sequ.*use hfds/",
    ),
    "streamed": ([["m", "hfids/x/y", "", "train"]], "hfids can be read only sequentially"),
    "unknown": ([["m", "abc/x", ".", ""]], "timm has no 'abc'; write hfds/"),
    "no tar": ([["m", "", "text.tar", ""]], "timm cannot read it .ReadError"),
    "shards missing": (
        [["m", "wds/", "shards", "s-{00..05}.tar"]],
        "m: .*3 shards are missing, as s-03.tar",
    ),
    "no shards": ([["m", "wds/", "shards", "t-*"]], r"has no file t-\*"),
    "unlabelled": ([["m", "wds/", "bare", ""]], "s-00.tar: 00000 has no .cls, the number of"),
    "no images": ([["m", "", "empty", ""]], "timm cannot read it .RuntimeError: Found 0 images"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_entries(kind, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.tar").write_text("no tar" * 200)
    (tmp_path / "empty").mkdir()
    make_shards(data / "val", tmp_path / "shards")
    make_shards(data / "val", tmp_path / "bare", with_labels=False)
    entries, says = BAD[kind]
    with pytest.raises(UserError, match=says) as e:
        config(data, "DATASETS.TRAIN", "('m',)", "DATASETS.TEST", "()", timm=entries)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 500


def test_a_missing_package(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    opts = ("DATASETS.TRAIN", "('m',)", "DATASETS.TEST", "()")
    with pytest.raises(UserError, match="pip install datasets"):
        config(data, *opts, timm=[["m", "hfds/x/y", "", "train"]])
