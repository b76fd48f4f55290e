"""The checkpoint of a run to resume from, which is read once, and the ones to remove."""

import os

import pytest
import torch

from rsb_d2 import Checkpointer, UserError
from rsb_d2.checkpoint import remove_leftovers, remove_old_checkpoints
from rsb_d2.checkpoint.run_folder import find_newest_complete, read_newest_entry


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints of a model of one number, which is their iteration."""
    model = torch.nn.Linear(1, 1, bias=False)
    checkpointer = Checkpointer(model, str(tmp_path))
    for iteration in (1, 3, 5):
        model.weight.data.fill_(iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (1e9 + iteration,) * 2)
    os.utime(tmp_path / "last_checkpoint", (1e9 + 6,) * 2)
    return tmp_path


def resumed_from(folder):
    model = torch.nn.Linear(1, 1, bias=False)
    state = Checkpointer(model, str(folder)).resume_or_load("", resume=True)
    assert model.weight.item() == state["iteration"]
    return state["iteration"]


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "gone"])
def test_a_damaged_newest_checkpoint_is_reported_and_skipped(checkpoints, damage, caplog):
    assert resumed_from(checkpoints) == 5
    path = checkpoints / "model_0000005.pth"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        end = {"cut": b"", "zeros": bytes(len(content) - middle), "empty": b""}[damage]
        path.write_bytes(content[: 0 if damage == "empty" else middle] + end)
    caplog.clear()
    assert resumed_from(checkpoints) == 3
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "model_0000005.pth" in warnings[0] and "model_0000003.pth" in warnings[0]


def test_resume_skips_a_checkpoint_that_is_not_finite(tmp_path, caplog):
    model = torch.nn.Linear(1, 1, bias=False)
    checkpointer = Checkpointer(model, str(tmp_path))
    for iteration, value in ((1, 1.0), (3, 3.0), (5, float("nan"))):
        model.weight.data.fill_(value)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    other = torch.nn.Linear(1, 1, bias=False)
    state = Checkpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert state["iteration"] == 3 and other.weight.item() == 3
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "model_0000005.pth has NaN in model.weight" in warning
    assert "model_0000003.pth" in warning


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
    assert resumed_from(checkpoints) == 3
    (checkpoints / "model_0000003.pth").write_bytes(b"")
    assert resumed_from(checkpoints) == 1


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
def run(tmp_path):
    """Two checkpoints of a model of a million numbers, which are the iteration."""
    model = torch.nn.Linear(1000, 1000, bias=False)
    checkpointer = Checkpointer(model, str(tmp_path))
    for iteration in (1, 3):
        model.weight.data.fill_(iteration)
        numbers = torch.full((1000,), float(iteration))
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration, numbers=numbers)
    return tmp_path


@pytest.fixture
def loaded(monkeypatch):
    """The names of the files that torch.load has been given."""
    names, original = [], torch.load

    def load(f, *args, **kwargs):
        names.append(os.path.basename(getattr(f, "name", f)))
        return original(f, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    return names


def resume(folder):
    model = torch.nn.Linear(1000, 1000, bias=False)
    state = Checkpointer(model, str(folder)).resume_or_load("", resume=True)
    assert (model.weight == state["iteration"]).all()
    return state


def test_finding_comparing_and_loading_read_once(run, loaded):
    assert read_newest_entry(str(run), "iteration") == 3
    assert read_newest_entry(str(run), "config") is None
    assert find_newest_complete(str(run)) == str(run / "model_0000003.pth")
    assert resume(run)["iteration"] == 3
    assert loaded == ["model_0000003.pth"]
    resume(run)  # nothing is kept behind the loading
    assert loaded == ["model_0000003.pth"] * 2


def test_a_checkpoint_that_changes_is_read_again(run, loaded):
    find_newest_complete(str(run))
    path = run / "model_0000003.pth"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert resume(run)["iteration"] == 1
    path.write_bytes(content)
    assert resume(run)["iteration"] == 3
    find_newest_complete(str(run))
    Checkpointer(torch.nn.Linear(1000, 1000, bias=False), str(run)).save("model_0000005")
    assert find_newest_complete(str(run)) == str(run / "model_0000005.pth")


def test_loaded_tensors_are_copied_out_of_the_file(run):
    state = resume(run)
    path = run / "model_0000003.pth"
    with open(path, "r+b") as f:  # in its place, as a map would see it
        f.write(bytes(path.stat().st_size))
    assert (state["numbers"] == 3).all()


@pytest.mark.parametrize("half", ["", '{"iteration": 2, "lo'])
def test_half_a_line_of_a_process_that_was_killed_is_removed(half, tmp_path):
    whole = '{"iteration": 0}\n{"iteration": 1}\n'
    (tmp_path / "metrics.json").write_text(whole + half)
    (tmp_path / "model_0000001.pth.17.tmp").write_text("half")
    remove_leftovers(str(tmp_path))
    assert (tmp_path / "metrics.json").read_text() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
