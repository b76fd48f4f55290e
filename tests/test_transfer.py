"""Images that a GPU copies by itself: the same ones, as they were loaded."""

import pytest
import torch

from rsb_d2 import Trainer
from rsb_d2.data import loader
from rsb_d2.memory import send_images
from tests.helpers.runs.resumable_run import make_config

OPTS = ["DATALOADER.NUM_WORKERS", "0", "SEED", "5"]


def test_batches_of_the_loader_are_sent(run_folder, device):
    plain = next(iter(Trainer.build_train_loader(make_config(run_folder, *OPTS))))
    cfg = make_config(run_folder, *OPTS, "MODEL.DEVICE", device)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    sent = send_images(batch, torch.device(device))
    assert len(sent) == len(plain) == cfg.SOLVER.IMS_PER_BATCH
    for expected, loaded, item in zip(plain, batch, sent):
        assert loaded["image"].is_pinned() == (device == "cuda")
        assert item["image"].device.type == device and item["image"].dtype == torch.uint8
        assert torch.equal(item["image"].cpu(), expected["image"])
        assert item["instances"] is loaded["instances"] and item.keys() == expected.keys()


def test_what_is_sent_is_not_waited_for(monkeypatch):
    """Of a GPU that is not there: pinned, unless it is or has left already, and copied behind."""
    calls, image = [], torch.zeros(3, 2, 2, dtype=torch.uint8)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: calls.append("pin") or t)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *args, **kw: calls.append((args, kw)) or t)
    gpu = torch.device("cuda", 1)
    item = {"image": image, "height": 2, "instances": "kept"}
    assert send_images([item], gpu) == [item]
    assert calls == ["pin", ((gpu,), {"non_blocking": True})]
    calls.clear()
    assert send_images([item], torch.device("cpu"))[0] is item and not calls


@pytest.mark.parametrize("device, is_pinned", [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_loaders_pin_for_a_gpu_alone(run_folder, monkeypatch, device, is_pinned):
    found = []

    def stop(*args, pin_memory, **kwargs):
        found.append(pin_memory)
        raise KeyboardInterrupt

    monkeypatch.setattr(loader, "WorkerLoader", stop)
    cfg = make_config(run_folder, *OPTS)
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    with pytest.raises(KeyboardInterrupt):
        next(iter(Trainer.build_train_loader(cfg)))
    assert found == [is_pinned]
