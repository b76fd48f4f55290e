"""Validation losses: those of training, and the training that has them takes the same steps."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, get_event_storage
from timm.layers import DropPath
from torch import nn

from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.data import register_coco_json
from rsb_d2.data.random_state import random_state_kept
from rsb_d2.engine.validation import (
    EarlyStopping,
    MetricHistory,
    StopTraining,
    build_validation_loader,
    loss_mode,
    validation_losses,
)
from tests.helpers.devices import reproducible
from tests.helpers.runs.scripted_training import ScriptedTrainer, make_config


def random_states():
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state().tolist())
    return states


@pytest.mark.parametrize("kind", ["faster", "mask", "retinanet", "stock retinanet"])
def test_validation_loss_is_the_loss_of_training_and_changes_nothing(sample_data, kind, device):
    opts = ["MODEL.META_ARCHITECTURE", "RetinaNet"] if kind.startswith("stock") else []
    cfg = make_config(sample_data, *opts, "MODEL.DEVICE", device, kind=kind.split()[-1])
    torch.manual_seed(0)
    model = build_model(cfg)
    model.train()
    model.backbone.bottom_up.eval()  # of mixed modes, which are to be kept
    if kind.startswith("stock"):
        model.loss_normalizer = 17.0
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = {n: m.training for n, m in model.named_modules()}
    numbers = {k: v for k, v in vars(model).items() if isinstance(v, (int, float))}
    states = random_states()
    with EventStorage() as storage, random_state_kept():
        loader = build_validation_loader(cfg)
        losses = validation_losses(model, loader)
        assert get_event_storage() is storage and not storage.latest()
    assert random_states() == states
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert {k: v for k, v in vars(model).items() if isinstance(v, (int, float))} == numbers
    assert all(p.grad is None for p in model.parameters())

    # The same as by hand, with the norms of the heads fixed, too.
    sums = Counter()
    with EventStorage(), torch.no_grad():
        for i, batch in enumerate(loader):
            torch.manual_seed(i)
            if "loss_normalizer" in numbers:
                model.loss_normalizer = 17.0
            for name, loss in model(batch).items():
                sums[f"val_{name}"] += loss.item() / 3
    expected = {"val_total_loss": sum(sums.values()), **sums}
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses["val_total_loss"] > 0
    assert ("val_loss_mask" in losses) == (kind == "mask")
    vars(model).update(numbers)
    again = validation_losses(model, loader)
    assert again == (losses if device == "cpu" else pytest.approx(losses, rel=1e-5))


def test_validation_images_are_resized_as_for_testing_and_not_flipped(sample_data):
    cfg = make_config(sample_data, "INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.CROP.ENABLED", "True")
    states = random_states()
    with random_state_kept():
        batches = [list(build_validation_loader(cfg)) for _ in range(2)]
    assert random_states() == states
    for (first,), (second,) in zip(*batches):
        assert min(first["image"].shape[1:]) == 64
        assert torch.equal(first["image"], second["image"])
        assert len(first["instances"]) >= 1


def test_loss_mode_leaves_nothing_to_chance():
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout())
    model.head = nn.Sequential(
        nn.BatchNorm2d(1), nn.GroupNorm(1, 1), nn.Dropout2d(), DropPath(), nn.ReLU()
    )
    with loss_mode(model):
        training = [m.training for m in model.head]
        assert training == [False, True, False, False, True] and model.training
        assert not any(m.training for m in model.backbone.modules())
    assert all(m.training for m in model.modules())


def _losses_in_a_process(rank, num_processes, port, cfg, results):
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_processes
    )
    register_coco_json(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = validation_losses(model, build_validation_loader(cfg))
    # The main process alone has evaluated; all of them stop.
    history = MetricHistory(f"{cfg.OUTPUT_DIR}/best.json", "bbox/AP")
    hook = EarlyStopping(1, 2, history)
    hook.trainer = SimpleNamespace(iter=2, max_iter=10, save_checkpoint=lambda name: None)
    if rank == 0:
        for done in (1, 2):
            history.add(done, 5.0)
    hook.after_step()
    if rank == 0:
        history.add(3, 5.0)
    with pytest.raises(StopTraining):
        hook.after_step()
    results[rank] = losses


@pytest.mark.slow
def test_several_processes_get_the_mean_over_all_images_and_stop_together(sample_data, tmp_path):
    cfg = make_config(sample_data, "OUTPUT_DIR", str(tmp_path))
    torch.manual_seed(0)
    expected = validation_losses(build_model(cfg), build_validation_loader(cfg))
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        port = 20000 + random.SystemRandom().randrange(20000)
        mp.spawn(_losses_in_a_process, (2, port, cfg, results), nprocs=2)
        assert results[0] == results[1]
        assert results[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", ["BN", pytest.param("FrozenBN", marks=pytest.mark.slow)])
def test_the_weights_are_the_same(tmp_path, norm, device):
    make_sample_data(str(tmp_path / "sample"), num_train=4, num_val=2)
    weights = {}
    for val_loss in (False, True):
        cfg = make_config(
            *(tmp_path / "sample", "TEST.VAL_LOSS", str(val_loss), "MODEL.TIMM.NORM", norm),
            *("SOLVER.MAX_ITER", "3", "SOLVER.BEST_METRIC", "", "MODEL.DEVICE", device),
            *("OUTPUT_DIR", str(tmp_path / f"run_{val_loss}")),
        )
        seed_all_rng(1)
        ScriptedTrainer.scores = [1.0, 2.0, 3.0]
        trainer = ScriptedTrainer(cfg)
        start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        with reproducible(device):
            trainer.train()
        weights[val_loss] = trainer.model.state_dict()
    losses = (tmp_path / "run_True" / "metrics.json").read_text()
    assert losses.count("val_total_loss") >= 1
    assert "val_total_loss" not in (tmp_path / "run_False" / "metrics.json").read_text()
    assert any(not torch.equal(start[k], v) for k, v in weights[True].items())
    # Running statistics among them.
    assert all(torch.equal(weights[False][k], v) for k, v in weights[True].items())
