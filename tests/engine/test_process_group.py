"""Distributed data parallelism on the backend of a device: NCCL on a GPU, gloo on the CPU."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from rsb_d2.engine.speed import prepare_for_training
from tests.helpers.devices import tolerance
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model
from tests.solver.test_accumulation import make_batches

SIZES = [(64, 96), (96, 64)]


def gradients(model, batch):
    torch.manual_seed(0)
    with EventStorage(1):
        sum(model(batch).values()).backward()
    named = getattr(model, "module", model).named_parameters()
    return {n: p.grad.detach().cpu().clone() for n, p in named if p.grad is not None}


def start(folder, device, rank, world_size):
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{folder}/meet", rank=rank, world_size=world_size)


def distribute(model, device, rank):
    if torch.device(device).type == "cpu":
        return DistributedDataParallel(model)
    return DistributedDataParallel(model, device_ids=[rank])


@pytest.fixture
def detector(device):
    norm = "BN" if device == "cpu" else "SyncBN"  # which torch has for GPUs alone
    opts = ["MODEL.TIMM.NORM", norm, "MODEL.TIMM.NORM_EVAL", "True", "MODEL.DEVICE", device]
    cfg = make_seeded_config("faster", *opts)
    return cfg, make_seeded_model(cfg).train()


def test_one_process(detector, device, tmp_path):
    cfg, model = detector
    (batch,) = make_batches(SIZES, num_batches=1)
    wrapped = copy.deepcopy(model)
    expected = gradients(model, batch)
    start(tmp_path, device, 0, 1)
    try:
        prepare_for_training(wrapped, cfg)
        found = gradients(distribute(wrapped, device, 0), batch)
    finally:
        dist.destroy_process_group()
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        near = tolerance(device, times=10 * scale)
        torch.testing.assert_close(found[name], gradient, **near, msg=name)


def _gradients_in_a_process(rank, folder):
    torch.cuda.set_device(rank)
    start(folder, "cuda", rank, 2)
    opts = ["MODEL.TIMM.NORM_EVAL", "True", "MODEL.DEVICE", f"cuda:{rank}"]
    model = make_seeded_model(make_seeded_config("faster", *opts)).train()
    batch = make_batches(SIZES, num_batches=2)[rank]
    alone = gradients(copy.deepcopy(model), batch)
    together = gradients(distribute(model, "cuda", rank), batch)
    torch.save((alone, together), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_average_their_gradients(tmp_path):
    mp.spawn(_gradients_in_a_process, (tmp_path,), nprocs=2)
    (alone, found), (other, again) = (
        torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)
    )
    for name, gradient in found.items():
        assert torch.equal(gradient, again[name]), name
        expected = (alone[name] + other[name]) / 2
        near = tolerance("cuda", times=10 * max(1.0, expected.abs().max().item()))
        torch.testing.assert_close(gradient, expected, **near, msg=name)
