"""The checkpoint of a run to resume from, which is read once, and the ones to remove."""

import os

import pytest
import torch

from rsb_d2 import Checkpointer, UserError
from rsb_d2.checkpoint import remove_leftovers, remove_old_checkpoints
from rsb_d2.checkpoint.run_folder import find_newest_complete, read_newest_entry

SIZE = 300


def make_model():
    return torch.nn.Linear(SIZE, SIZE, bias=False)


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints of a model, all of whose numbers are their iteration."""
    model = make_model()
    checkpointer = Checkpointer(model, str(tmp_path))
    for iteration in (1, 3, 5):
        model.weight.data.fill_(iteration)
        numbers = torch.full((1000,), float(iteration))
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration, numbers=numbers)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (1e9 + iteration,) * 2)
    os.utime(tmp_path / "last_checkpoint", (1e9 + 6,) * 2)
    return tmp_path


def resumed_from(folder):
    model = make_model()
    state = Checkpointer(model, str(folder)).resume_or_load("", resume=True)
    assert (model.weight == state["iteration"]).all()
    return state


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "gone", "NaN"])
def test_a_damaged_newest_checkpoint_is_reported_and_skipped(checkpoints, damage, caplog):
    assert resumed_from(checkpoints)["iteration"] == 5
    path = checkpoints / "model_0000005.pth"
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        path.unlink()
    elif damage == "NaN":
        weights = torch.full((SIZE, SIZE), float("nan"))
        torch.save({"model": {"weight": weights}, "iteration": 5}, path)
    else:
        end = {"cut": b"", "zeros": bytes(len(content) - middle), "empty": b""}[damage]
        path.write_bytes(content[: 0 if damage == "empty" else middle] + end)
    caplog.clear()
    assert resumed_from(checkpoints)["iteration"] == 3
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "model_0000005.pth" in warning and "model_0000003.pth" in warning
    assert ("has NaN in model.weight" in warning) == (damage == "NaN")


def test_no_readable_checkpoint_is_an_error(checkpoints):
    for path in checkpoints.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="--resume: none of the checkpoints") as e:
        resumed_from(checkpoints)
    assert "\n" not in str(e.value)


def test_checkpoints_of_an_earlier_longer_run_are_ignored(checkpoints):
    os.utime(checkpoints / "model_0000005.pth", (1e9 - 1,) * 2)
    (checkpoints / "last_checkpoint").write_text("model_0000003.pth")
    os.utime(checkpoints / "last_checkpoint", (1e9 + 4,) * 2)
    assert resumed_from(checkpoints)["iteration"] == 3
    (checkpoints / "model_0000003.pth").write_bytes(b"")
    assert resumed_from(checkpoints)["iteration"] == 1


def test_old_checkpoints_are_removed(checkpoints):
    (checkpoints / "model_final.pth").touch()
    (checkpoints / "model_best.pth").touch()
    remove_old_checkpoints(str(checkpoints), 3, 1)  # 5 is of another run
    assert sorted(p.stem for p in checkpoints.glob("*.pth")) == [
        *("model_0000003", "model_0000005", "model_best", "model_final"),
    ]
    remove_old_checkpoints(str(checkpoints), 5, 3)
    assert len(list(checkpoints.glob("*.pth"))) == 4


# ---- the checkpoint found is kept until it is loaded ----


@pytest.fixture
def loaded(monkeypatch):
    """The names of the files that torch.load has been given."""
    names, original = [], torch.load

    def load(f, *args, **kwargs):
        names.append(os.path.basename(getattr(f, "name", f)))
        return original(f, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    return names


def test_finding_comparing_and_loading_read_once(checkpoints, loaded):
    assert read_newest_entry(str(checkpoints), "iteration") == 5
    assert read_newest_entry(str(checkpoints), "config") is None
    assert find_newest_complete(str(checkpoints)) == str(checkpoints / "model_0000005.pth")
    state = resumed_from(checkpoints)
    assert loaded == ["model_0000005.pth"]
    resumed_from(checkpoints)  # nothing is kept after loading
    assert loaded == ["model_0000005.pth"] * 2
    path = checkpoints / "model_0000005.pth"
    with open(path, "r+b") as f:  # in place, as a memory map would see it
        f.write(bytes(path.stat().st_size))
    assert (state["numbers"] == 5).all()


def test_a_checkpoint_that_changes_is_read_again(checkpoints):
    find_newest_complete(str(checkpoints))
    path = checkpoints / "model_0000005.pth"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert resumed_from(checkpoints)["iteration"] == 3
    path.write_bytes(content)
    assert resumed_from(checkpoints)["iteration"] == 5
    find_newest_complete(str(checkpoints))
    Checkpointer(make_model(), str(checkpoints)).save("model_0000007")
    assert find_newest_complete(str(checkpoints)) == str(checkpoints / "model_0000007.pth")


@pytest.mark.parametrize("half", ["", '{"iteration": 2, "lo'])
def test_half_a_line_of_a_process_that_was_killed_is_removed(half, tmp_path):
    whole = '{"iteration": 0}\n{"iteration": 1}\n'
    (tmp_path / "metrics.json").write_text(whole + half)
    (tmp_path / "model_0000001.pth.17.tmp").write_text("half")
    remove_leftovers(str(tmp_path))
    assert (tmp_path / "metrics.json").read_text() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
