"""The training loader: its order is Detectron2's, and a function of seed and place alone."""

import itertools
import os
import random
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from torch.utils.data import get_worker_info

from rsb_d2 import UserError
from rsb_d2.data.images import BadImageError
from rsb_d2.data.loader import Replacements, TrainingOrder, build_sampler, build_train_loader
from tests.helpers.data.loaders import (
    SEED,
    contents,
    ids,
    make_cfg,
    make_loader,
    make_records,
    noisy,
    same,
)

SAMPLERS = {
    "TrainingSampler": lambda records: TrainingSampler(len(records), seed=SEED),
    "RepeatFactorTrainingSampler": lambda records: RepeatFactorTrainingSampler(
        RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.4), seed=SEED
    ),
    "RandomSubsetTrainingSampler": lambda records: RandomSubsetTrainingSampler(
        len(records), 0.6, seed_shuffle=SEED, seed_subset=SEED
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grouping", [True, False])
def test_the_order_is_that_of_detectron2(sampler, grouping):
    records = make_records()
    # With workers, the stock order depends on their number.
    stock = build_detection_train_loader(
        records,
        mapper=same,
        sampler=SAMPLERS[sampler](records),
        total_batch_size=4,
        aspect_ratio_grouping=grouping,
        num_workers=0,
    )
    expected = ids(iter(stock), 30)
    for num_workers in (0, 2):
        cfg = make_cfg(SAMPLER_TRAIN=sampler)
        ours = make_loader(cfg=cfg, aspect_ratio_grouping=grouping, num_workers=num_workers)
        assert ids(iter(ours), 30) == expected
    if grouping:
        wide = [{i % 3 == 2 for i in batch} for batch in expected]
        assert all(len(shapes) == 1 for shapes in wide) and {True} in wide and {False} in wide


def test_an_unknown_sampler_is_an_error():
    with pytest.raises(UserError, match="DATALOADER.SAMPLER_TRAIN is 'Mine'; write Training"):
        make_loader(cfg=make_cfg(SAMPLER_TRAIN="Mine"))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_out_the_batches_of_one(world_size):
    records = make_records()
    groups = [r["width"] <= r["height"] for r in records]

    def order(rank, world_size):
        sampler = build_sampler(make_cfg(), records, SEED)
        return TrainingOrder(sampler, groups, 4, rank, world_size)

    one = list(itertools.islice(order(0, 1), 80))
    share = 4 // world_size
    shares = [list(itertools.islice(order(r, world_size), 20 * share)) for r in range(world_size)]
    together = [
        place for i in range(20) for s in shares for place in s[i * share : (i + 1) * share]
    ]
    assert together == one


def test_a_batch_that_cannot_be_shared_out_is_an_error():
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH is 4: it must be a multiple.*is 3"):
        TrainingOrder([], [], 4, 0, 3)


def test_a_batch_depends_only_on_its_number():
    whole = contents(iter(make_loader(noisy)), 12)
    noise = [n for batch in whole for _, n in batch]
    assert len(set(noise)) == len(noise)  # an image looks different each time
    for num_workers, num_before in ((0, 1), (2, 5), (1, 11)):
        before = make_loader(noisy, num_workers=num_workers)
        first = contents(iter(before), num_before)
        after = make_loader(noisy, num_workers=num_workers // 2, seed=99)
        after.load_state_dict(before.state_dict())
        assert first + contents(iter(after), 12 - num_before) == whole
    assert contents(iter(make_loader(noisy, seed=8)), 12) != whole


def test_the_random_state_of_the_training_is_unchanged():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = [random.random(), np.random.rand(), torch.rand(()).item()]
    for num_workers in (0, 1):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        contents(iter(make_loader(noisy, num_workers=num_workers)), 3)
        assert [random.random(), np.random.rand(), torch.rand(()).item()] == expected


def test_going_on_after_90000_iterations_of_coco_reads_no_image_before():
    records = [{"width": 4 + i % 4, "height": 5, "image_id": i} for i in range(117266)]
    read = []

    def mapper(record):
        read.append(record["image_id"])
        return record

    loader = make_loader(mapper, records, total_batch_size=16)
    loader.load_state_dict({"seed": SEED, "num_images": 90000 * 16, "bad_images": {}})
    batch = next(iter(loader))
    assert read == [image["image_id"] for image in batch]
    # The sampler's own numbers: of a stream of 1,440,000 and those that wait for a full batch.
    stream = TrainingSampler(len(records), seed=SEED)
    counts = np.bincount([i for i in itertools.islice(stream, 90000 * 16)], minlength=len(records))
    assert counts.min() >= 12 and counts.max() <= 13


def make_bad(*bad):
    def mapper(record):
        if record["image_id"] in bad:
            raise BadImageError(record["file_name"], "it is bad")
        return noisy(record)

    return mapper


def num_warnings(caplog):
    return sum(record.levelname == "WARNING" for record in caplog.records)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_another_image_takes_the_place_of_a_bad_one(num_workers, caplog):
    whole = contents(iter(make_loader(noisy)), 12)
    loader = make_loader(make_bad(3, 5), num_workers=num_workers)
    found = contents(iter(loader), 12)
    assert num_warnings(caplog) == 2  # once for each, however often it comes
    assert "number 1 of at most 100" in caplog.text and "3.jpg: it is bad" in caplog.text
    differ = [(a, b) for x, y in zip(whole, found) for a, b in zip(x, y) if a != b]
    assert differ and all(a[0] in (3, 5) for a, b in differ)
    assert all(b[0] not in (3, 5) for a, b in differ)
    assert all((a[0] % 3 == 2) == (b[0] % 3 == 2) for a, b in differ)  # of the same shape
    # The same ones after a resume, and no second warning.
    caplog.clear()
    after = make_loader(make_bad(3, 5))
    first = make_loader(make_bad(3, 5), num_workers=num_workers)
    assert contents(iter(first), 6) == found[:6]
    after.load_state_dict(first.state_dict())
    assert contents(iter(after), 6) == found[6:]
    assert num_warnings(caplog) == 2


def test_a_replacement_is_drawn_of_the_other_images_of_the_group():
    groups = bytes([0, 1, 1, 0, 2, 1, 0, 1, 0, 0])
    replacements = Replacements(groups)
    for index, group in enumerate(groups):
        others = [i for i, g in enumerate(groups) if g == group and i != index] or [index]
        for seed in range(40):
            torch.manual_seed(seed)
            expected = others[int(torch.randint(len(others), ()))]
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            assert replacements.draw(index) == expected
            assert torch.equal(torch.get_rng_state(), state)


def test_too_many_bad_images_stop_the_training():
    loader = make_loader(make_bad(0, 1, 2, 3), max_bad_images=3)
    with pytest.raises(UserError, match="more than 3 images are bad.*DATALOADER.MAX_BAD_IMAGES"):
        contents(iter(loader), 20)
    loader = make_loader(make_bad(0, 1, 2), max_bad_images=3)
    assert len(contents(iter(loader), 40)) == 40


def test_a_worker_that_dies_is_an_error():
    def mapper(record):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match="a process that loads images has died.*NUM_WORKERS") as e:
        next(iter(make_loader(mapper, num_workers=1)))
    assert "\n" not in str(e.value)


def test_a_worker_that_dies_of_the_signal_that_ends_the_training_costs_no_batch():
    def mapper(record):
        if get_worker_info() is not None and record["image_id"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return noisy(record)

    loader = make_loader(mapper, num_workers=1)
    loader.is_ending = lambda: True
    assert contents(iter(loader), 12) == contents(iter(make_loader(noisy)), 12)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_are_all_bad_are_an_error(num_workers):
    loader = make_loader(make_bad(*range(23)), num_workers=num_workers)
    with pytest.raises(UserError, match="10 images, drawn to replace one another") as e:
        next(iter(loader))
    assert "\n" not in str(e.value)


def test_a_mapper_may_return_none_to_have_another_image():
    loader = make_loader(lambda record: record if record["image_id"] != 4 else None)
    found = ids(iter(loader), 20)
    assert 4 not in itertools.chain(*found)


def test_no_image_is_an_error():
    with pytest.raises(UserError, match="DATASETS.TRAIN: there is no image"):
        make_loader(records=[])


def test_the_loader_of_a_config():
    name = "records_of_test_loader"
    DatasetCatalog.register(name, make_records)
    try:
        cfg = make_cfg()
        cfg.DATASETS.TRAIN = (name,)
        cfg.SOLVER.IMS_PER_BATCH = 4
        cfg.SEED = SEED
        assert ids(iter(build_train_loader(cfg, same)), 9) == ids(iter(make_loader()), 9)
        cfg.SEED = -1  # a random one, which is in the state
        first = build_train_loader(cfg, noisy)
        again = build_train_loader(cfg, noisy)
        again.load_state_dict(first.state_dict())
        assert contents(iter(again), 9) == contents(iter(first), 9)
    finally:
        DatasetCatalog.remove(name)
