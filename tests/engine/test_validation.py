"""Validation losses, the best checkpoint and early stopping."""

import json
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, get_event_storage
from timm.layers import DropPath
from torch import nn

from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data
from rsb_d2.data.random_state import random_state_kept
from rsb_d2.engine.hooks import (
    EarlyStopping,
    MetricHistory,
    StopTraining,
    build_validation_loader,
    loss_mode,
    validation_losses,
)
from tests.engine.test_train_step import run_forked
from tests.helpers.devices import reproducible
from tests.helpers.runs.scripted_training import (
    CLASS_IDS,
    ScriptedTrainer,
    load,
    make_config,
    train,
)


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


def test_loss_mode_switches_off_dropout_and_running_statistics():
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


def test_several_processes_get_the_mean_over_all_images_and_stop_together(sample_data, tmp_path):
    cfg = make_config(sample_data, "OUTPUT_DIR", str(tmp_path))

    def compute_losses():
        torch.manual_seed(0)
        return validation_losses(build_model(cfg), build_validation_loader(cfg))

    def work(rank):
        # Only the main process evaluates; all processes stop.
        history = MetricHistory(f"{tmp_path}/best.json", "bbox/AP")
        hook = EarlyStopping(1, 2, history)
        hook.trainer = SimpleNamespace(iter=2, max_iter=10, save_checkpoint=lambda name: None)
        stops = []
        for values in ((1, 2), (3,)):
            for done in values if rank == 0 else ():
                history.add(done, 5.0)
            try:
                hook.after_step()
                stops.append(False)
            except StopTraining:
                stops.append(True)
        return compute_losses(), stops

    of_0, of_1 = run_forked(work, tmp_path)
    assert of_0 == of_1 == (pytest.approx(compute_losses(), rel=1e-5), [False, True])


@pytest.mark.parametrize("norm", ["BN", pytest.param("FrozenBN", marks=pytest.mark.slow)])
def test_the_validation_loss_does_not_change_the_weights(tmp_path, norm, device):
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


def test_best_checkpoint_survives_a_resume(sample_data, tmp_path):
    def config(max_iter):
        return make_config(
            sample_data, "SOLVER.MAX_ITER", str(max_iter), "OUTPUT_DIR", str(tmp_path / "run")
        )

    trainer = train(config(3), [20.0, 30.0, float("nan")])
    output = tmp_path / "run"
    best = load(output / "model_best.pth")
    assert best["iteration"] == 1
    assert set(best) == {"model", "iteration", "class_names", "class_ids"}
    assert best["class_names"] == list(CLASS_NAMES) and best["class_ids"] == CLASS_IDS
    last = load(output / "model_final.pth")
    assert last["class_names"] == list(CLASS_NAMES)
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert any(not torch.equal(v, last["model"][k]) for k, v in best["model"].items())
    assert not trainer.stopped_early

    train(config(5), [25.0, 29.0], resume=True)
    assert load(output / "model_best.pth")["iteration"] == 1
    train(config(6), [31.0], resume=True)
    assert load(output / "model_best.pth")["iteration"] > 4
    history = json.loads((output / "best.json").read_text())
    assert history["best"] == {"iterations": 6, "value": 31.0}
    assert [e["iterations"] for e in history["evaluations"]] == [1, 2, 3, 4, 5, 6]
    assert history["evaluations"][2]["value"] is None  # NaN is not JSON

    # A new run in the same folder has its own history.
    train(config(1), [5.0])
    assert load(output / "model_best.pth")["iteration"] <= 1
    assert json.loads((output / "best.json").read_text())["best"]["value"] == 5.0


def test_early_stopping_ends_a_run_completely(sample_data, tmp_path):
    def config(patience):
        return make_config(
            *(sample_data, "SOLVER.EARLY_STOP_PATIENCE", str(patience), "TEST.VAL_LOSS", "True"),
            *("OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINT_PERIOD", "1"),
        )

    trainer = train(config(2), [20.0, 30.0, 30.0, 29.0])
    assert trainer.stopped_early
    assert load(tmp_path / "model_final.pth")["iteration"] == 3
    assert not (tmp_path / "model_0000004.pth").exists()
    assert (tmp_path / "detections.png").is_file() and (tmp_path / "curves.png").is_file()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["bbox/AP"] == 29.0 and metrics[-1]["val_total_loss"] > 0
    assert "val_loss_rpn_cls" in metrics[-1]

    # It stays over, whatever resumes it, until it may be longer without progress.
    assert train(config(2), [], resume=True).stopped_early
    assert load(tmp_path / "model_final.pth")["iteration"] == 3
    trainer = train(config(3), [28.0], resume=True)
    assert trainer.stopped_early and load(tmp_path / "model_final.pth")["iteration"] == 4
    assert not train(config(4), [35.0], resume=True).stopped_early
    assert load(tmp_path / "model_final.pth")["iteration"] == 5


@pytest.mark.parametrize(
    "mode, values, best, since",
    [
        ("max", [], None, 0),
        ("max", [1, 3, 3, 2], (2, 3), 2),
        ("min", [1, 3, 1, 2], (1, 1), 3),
        ("max", [float("nan"), float("nan")], None, 2),
        ("max", [float("nan"), 1], (2, 1), 0),
    ],
)
def test_metric_history(tmp_path, mode, values, best, since):
    history = MetricHistory(str(tmp_path / "best.json"), "bbox/AP", mode)
    for i, value in enumerate(values, start=1):
        history.add(i, value)
    again = MetricHistory(str(tmp_path / "best.json"), "bbox/AP", mode)
    again.load(100)
    for h in (history, again):
        assert (h.best, h.num_since_best) == (best, since)
    again.load(0)
    assert again.best is None
    other = MetricHistory(str(tmp_path / "best.json"), "segm/AP", mode)
    other.load(100)
    assert other.best is None
