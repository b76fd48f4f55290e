"""The contents of batches and their mixing depend only on the seed and the position."""

from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from timm.data import create_dataset

from rsb_d2 import Trainer
from rsb_d2.config.loading import load_config
from rsb_d2.pretraining.classifier import ImageClassifier
from rsb_d2.pretraining.data import register_image_folders
from rsb_d2.pretraining.data.loading import share_of_batch
from tests.helpers.paths import CONFIGS
from tests.helpers.small_pretraining import make_objects, options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_objects(tmp_path_factory.mktemp("objects"))


def small_config(data, *opts, name="a2"):
    path = str(CONFIGS / "pretrain" / f"resnet50_rsb_{name}.yaml")
    cfg = load_config(path, options(data, *opts))
    register_image_folders(cfg)
    return cfg


def take(cfg, number=3):
    return list(islice(Trainer.build_train_loader(cfg), number))


def check_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert [x["file_name"] for x in batch] == [x["file_name"] for x in other]
        assert [x["mix_seed"] for x in batch] == [x["mix_seed"] for x in other]
        for a, b in zip(batch, other):
            assert torch.equal(a["image"], b["image"])


def test_batches_with_workers_and_after_resuming(data):
    cfg = small_config(data)
    whole = take(cfg, 4)
    check_same(take(small_config(data, "DATALOADER.NUM_WORKERS", "2"), 4), whole)
    loader = Trainer.build_train_loader(cfg)
    list(islice(loader, 2))
    other = Trainer.build_train_loader(cfg)
    other.load_state_dict(loader.state_dict())
    check_same(list(islice(other, 2)), whole[2:])
    seeds = [batch[0]["mix_seed"] for batch in whole]
    assert len(set(seeds)) == 4
    again = take(small_config(data, "SEED", "4"), 4)
    assert not torch.equal(again[0][0]["image"], whole[0][0]["image"])


def test_repeats_are_adjacent_and_differ(data):
    batches = take(small_config(data, "SOLVER.IMS_PER_BATCH", "12"), 2)
    for batch in batches:
        names = [x["file_name"] for x in batch]
        assert names[0::3] == names[1::3] == names[2::3] and len(set(names)) == 4
        assert not torch.equal(batch[0]["image"], batch[1]["image"])


@pytest.mark.parametrize("world_size, group", [(1, 8), (2, 8), (4, 8), (2, 24), (3, 12)])
def test_shares_of_a_batch_keep_partners_together(world_size, group):
    batch_size = 24
    shares = [share_of_batch(batch_size, r, world_size, group) for r in range(world_size)]
    assert sorted(place for share in shares for place in share) == list(range(batch_size))
    for share in shares:
        assert len(share) == batch_size // world_size
        of_group = group // world_size
        for start in range(0, len(share), of_group):
            places = share[start : start + of_group]
            (first,) = {place // group * group for place in places}
            # The first image of the part is mixed with its last, as in the complete group.
            assert [2 * first + group - 1 - place for place in places] == places[::-1]


@pytest.mark.parametrize("world_size, parts", [(2, 1), (1, 2), (2, 2)])
def test_mixing_with_any_number_of_processes_and_parts(
    data, monkeypatch, world_size, parts, device
):
    opts = ("SOLVER.IMS_PER_BATCH", "16", "INPUT.CLASSIFIER.MIX_GROUP", "8")
    whole_config = small_config(data, *opts)
    model = ImageClassifier(whole_config).to(device)

    def mixed(batch):
        images, targets = model.mix(model.normalize(batch), batch)
        return sorted(zip(images.flatten(1).sum(1).tolist(), targets.tolist()))

    expected = [mixed(batch) for batch in take(whole_config)]
    cfg = small_config(data, *opts, "SOLVER.ACCUMULATE_STEPS", str(parts))
    found = [[] for _ in expected]
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(comm, "all_gather", lambda x: [x])
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for number, batch in enumerate(take(cfg)):
            size = len(batch) // parts
            for start in range(0, len(batch), size):
                found[number] += mixed(batch[start : start + size])
    for a, b in zip(expected, map(sorted, found), strict=True):
        np.testing.assert_allclose([x for x, _ in a], [x for x, _ in b], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose([t for _, t in a], [t for _, t in b], rtol=1e-5)


def test_classes_and_labels_are_timms(data):
    cfg = small_config(data)
    theirs = create_dataset("", root=str(data / "val"))
    expected = {path: label for path, label in theirs.reader.samples}
    found = [x for batch in Trainer.build_test_loader(cfg, "rsb_objects_val") for x in batch]
    assert {x["file_name"]: x["label"] for x in found} == expected and len(found) == 10
