"""What the processes tell one another in a step: no bad step is taken, and nothing is added."""

import logging
import math

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from rsb_d2 import UserError
from rsb_d2.data.images import BadImageError
from rsb_d2.engine.amp import AMPTrainer
from rsb_d2.engine.exchange import use_exchange
from rsb_d2.engine.resume import share_buffers
from rsb_d2.engine.signals import SignalWatch
from rsb_d2.solver.accumulation import AccumulatingTrainer
from tests.helpers.data.loaders import make_loader
from tests.helpers.installed import IS_MAIN
from tests.helpers.runs.forked import run_forked


class Model(nn.Module):
    """Two losses of images that are a number; one may be anything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 3)

    def forward(self, batch):
        x = torch.tensor([[float(image["image_id"])] for image in batch]) / 23
        out = self.layer(x).square().mean()
        return {"loss_a": out, "loss_b": out * batch[-1].get("factor", 1.0)}


class Loop:
    """As much of a DefaultTrainer as is used: an inner trainer, and steps."""

    def __init__(self, loader, kind="plain", num_parts=1, with_exchange=True):
        model = Model()
        if dist.is_initialized():
            model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.model, self.data_loader = model, loader
        self._trainer = SimpleTrainer(model, loader, optimizer)
        if kind != "plain":
            self._trainer = AMPTrainer(self._trainer, getattr(torch, kind))
            self._trainer.dtype = torch.bfloat16  # to compute in, also where float16 cannot be
        if num_parts > 1:
            self._trainer = self._trainer if kind != "plain" else AccumulatingTrainer(self._trainer)
            self._trainer.accumulate(num_parts)
        self.signals = SignalWatch(dist.get_world_size() if dist.is_initialized() else 1)
        if with_exchange:
            use_exchange(self, self.signals)

    def weights(self):
        return nn.utils.parameters_to_vector(self.model.parameters()).tolist()

    def step(self, i):
        """Take a step; returns what is written of it."""
        self._trainer.iter = i
        with EventStorage(i) as storage:
            self._trainer.run_step()
        return {name: value for name, (value, _) in storage.latest().items() if "time" not in name}


def with_factor(factor, at):
    """A mapper that spoils the loss by one of the images."""
    return lambda record: {**record, "factor": factor if record["image_id"] == at else 1.0}


def steps_until_error(loop, num_steps=8):
    weights = loop.weights()
    for i in range(num_steps):
        try:
            loop.step(i)
        except FloatingPointError as e:
            return i, str(e), e.files, weights, loop.weights()
        weights = loop.weights()


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["plain", "bfloat16", "float16"])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_no_step_with_a_bad_loss_is_taken(factor, kind, num_parts):
    batches = iter(make_loader())
    second = [next(batches) for _ in range(2)][1]
    at = second[-1]["image_id"]
    loop = Loop(make_loader(with_factor(factor, at)), kind, num_parts)
    i, message, files, before, after = steps_until_error(loop)
    assert i == 1 and before == after and all(map(math.isfinite, after))
    assert message.startswith("the loss is not finite: loss_a 0.") and str(factor) in message
    assert files == [image["file_name"] for image in second]


def test_all_of_several_processes_stop_before_a_step_that_is_bad_in_one(tmp_path):
    def work(rank):
        batches = iter(make_loader())
        third = [next(batches) for _ in range(3)][2]
        own = [image["file_name"] for image in third]
        loader = make_loader(with_factor(math.nan, third[-1]["image_id"] if rank else -1))
        return own, steps_until_error(Loop(loader))

    (_, of_0), (files, of_1) = run_forked(work, tmp_path)
    assert of_0 == of_1
    i, message, files_told, before, after = of_1
    assert i == 2 and before == after and all(map(math.isfinite, after))
    assert "not finite in process 1: " in message and "loss_b nan" in message
    assert files_told == files and len(files) == 2


class Counted(TorchDispatchMode):
    """How often a number is read from the device; `item` does."""

    num_read = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.num_read += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch):
    names = []
    for name in ("all_gather", "gather", "all_gather_object", "gather_object", "barrier"):
        original = getattr(dist, name)

        def count(*args, original=original, name=name, **kwargs):
            names.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(dist, name, count)
    return names


def test_a_step_waits_and_gathers_no_more_than_detectron2s(tmp_path, counted):
    def work(rank):
        found = []
        for with_exchange in (False, True):
            loader = make_loader()
            if not with_exchange:
                loader = [[image.copy() for image in batch] for _, batch in zip(range(3), loader)]
            loop = Loop(loader, with_exchange=with_exchange)
            loop.step(0)
            counted.clear()
            with Counted() as reads:
                written = [loop.step(i) for i in (1, 2)]
            found.append((written, loop.weights(), len(counted), reads.num_read))
        return found

    for rank, (stock, ours) in enumerate(run_forked(work, tmp_path)):
        assert ours[:2] == stock[:2]
        assert ours[0][0].keys() == (set() if rank else {"total_loss", "loss_a", "loss_b"})
        # Of each gather in Detectron2 0.6 the sizes and what is gathered; in its main, which
        # gathers objects, the number of gathers alone is compared.
        assert ours[2] == stock[2] == (2 if IS_MAIN else 4)
        assert IS_MAIN or ours[3] < stock[3]


def bad(*numbers):
    def mapper(record):
        if record["image_id"] in numbers:
            raise BadImageError(record["file_name"], "it is bad")
        return record

    return mapper


def test_bad_images_and_signals_are_known_to_all_processes(tmp_path, caplog):
    def work(rank):
        caplog.handler.setLevel(logging.WARNING)
        loader = make_loader(bad(3, 5) if rank else bad(4), max_bad_images=3)
        loop = Loop(loader)
        received = []
        for i in range(12):
            if rank and i == 6:
                loop.signals.received = 15
            loop.step(i)
            received.append(loop.signals.received_by_any)
        return loader.state_dict()["bad_images"], received, caplog.text.count("Skipped a bad image")

    of_0, of_1 = run_forked(work, tmp_path)
    assert of_0 == of_1
    assert of_0 == (
        dict.fromkeys(["3.jpg", "4.jpg", "5.jpg"], "it is bad"),
        [None] * 6 + [15] * 6,
        3,
    )


def test_too_many_bad_images_of_all_processes_stop_all(tmp_path):
    def work(rank):
        loop = Loop(make_loader(bad(3, 5) if rank else bad(4, 7), max_bad_images=3))
        before = loop.weights()
        for i in range(20):
            try:
                loop.step(i)
            except UserError as e:
                return i, str(e), before == loop.weights()
            before = loop.weights()

    of_0, of_1 = run_forked(work, tmp_path)
    assert of_0 == of_1 and of_0[2]
    assert of_0[1].startswith("more than 3 images are bad, the last one is ")


def test_a_single_loss_and_losses_of_several_types():
    class Single(Model):
        def forward(self, batch):
            return super().forward(batch)["loss_a"]

    class Mixed(Model):
        def forward(self, batch):
            losses = super().forward(batch)
            return {"a": losses["loss_a"].double(), "b": losses["loss_b"].bfloat16().reshape(1)}

    for kind in (Single, Mixed):
        written = []
        for with_exchange in (False, True):
            loop = Loop(make_loader(), with_exchange=with_exchange)
            loop._trainer.model = kind()
            written.append(loop.step(0))
        assert written[0] == written[1] and "total_loss" in written[0]


def test_all_processes_evaluate_with_the_statistics_that_are_in_the_checkpoint(tmp_path):
    def work(rank):
        norm = nn.BatchNorm2d(2)
        norm(torch.full((1, 2, 3, 3), rank + 1.0))
        share_buffers(norm)
        return norm.running_mean.tolist(), int(norm.num_batches_tracked)

    of_0, of_1 = run_forked(work, tmp_path)
    assert of_0 == of_1 == (pytest.approx([0.1, 0.1]), 1)
