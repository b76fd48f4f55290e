"""Checkpoints with tensors that are not numbers: named by every entry, passed over by --resume."""

import numpy as np
import pytest
import safetensors.torch
import torch

from rsb_d2 import Checkpointer, UserError
from rsb_d2.checkpoint.convert import convert_file
from rsb_d2.checkpoint.reading import read_checkpoint

NAN, INFINITE = float("nan"), float("inf")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value, what", [(NAN, "NaN"), (INFINITE, "infinite values")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_tensor_is_named(tmp_path, value, what, suffix, dtype):
    weights = {"a": torch.ones(3, dtype=dtype), "b": torch.ones(2, 2, dtype=dtype)}
    weights["b"][1, 0] = value
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif suffix == "pth":
        torch.save({"state_dict": weights}, path)
    else:
        import pickle

        arrays = {n: t.float().numpy() for n, t in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    with pytest.raises(UserError) as e:
        read_checkpoint(str(path))
    assert f"has {what} in model.b:" in one_line(e)


def test_integers_booleans_and_empty_tensors_are_none_of_it(tmp_path):
    weights = {
        **{"n": torch.tensor([2**62]), "f": torch.zeros(0), "b": torch.tensor(True)},
        "largest": torch.tensor(np.finfo(np.float32).max),
    }
    torch.save({"model": weights, "scheduler": {"last": INFINITE}}, tmp_path / "a.pth")
    assert read_checkpoint(str(tmp_path / "a.pth"))["model"].keys() == weights.keys()


def test_the_state_of_the_optimizer_counts_too(tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.tensor([1.0, NAN])}}, "param_groups": []}
    torch.save({"model": {"a": torch.ones(1)}, "optimizer": optimizer}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"NaN in optimizer\.state\.0\.exp_avg:"):
        read_checkpoint(str(tmp_path / "a.pth"))


def test_loading_and_converting_stop(tmp_path):
    model = torch.nn.Linear(2, 1)
    torch.save({"model": {"weight": torch.tensor([[1.0, NAN]]), "bias": torch.ones(1)}}, "a.pth")
    before = model.weight.detach().clone()
    with pytest.raises(UserError, match="NaN in model.weight"):
        Checkpointer(model).load("a.pth")
    assert torch.equal(model.weight, before)
    with pytest.raises(UserError, match="NaN in model.weight"):
        convert_file("a.pth", "b.pth", "timm")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_resume_passes_it_over_like_a_damaged_one(tmp_path, caplog):
    model = torch.nn.Linear(1, 1, bias=False)
    checkpointer = Checkpointer(model, str(tmp_path))
    for iteration, value in ((1, 1.0), (3, 3.0), (5, NAN)):
        model.weight.data.fill_(value)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    other = torch.nn.Linear(1, 1, bias=False)
    state = Checkpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert state["iteration"] == 3 and other.weight.item() == 3
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "model_0000005.pth has NaN in model.weight" in warning
    assert "model_0000003.pth" in warning
