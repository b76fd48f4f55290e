"""A run that is stopped and goes on: nothing lost, nothing changed."""

import json
import shutil

import pytest
import torch

from rsb_d2 import Trainer
from rsb_d2.checkpoint import find_newest_complete
from tests.helpers import kill_and_resume
from tests.helpers.devices import reproducible
from tests.helpers.runs.resumable_run import load, make_config, run, train

AVERAGED = [
    *("SOLVER.ACCUMULATE_STEPS", "2", "MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.9"),
    *("SOLVER.BEST_METRIC", "ema/bbox/AP", "SOLVER.OPTIMIZER", "LAMB", "SOLVER.WARMUP_EPOCHS", "1"),
]


@pytest.mark.parametrize(
    "flags, opts, iterations, kills",
    [
        (["--once", "--iterations", "6"], [], 6, 5),
        pytest.param([], [], 12, 10, marks=pytest.mark.slow),
        pytest.param([], AVERAGED, 12, 10, marks=pytest.mark.slow),
    ],
    ids=["each kind once", "all", "accumulation, EMA and LAMB"],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    run_folder, device, flags, opts, iterations, kills
):
    """Weights, optimizer, random states, place in the data, best AP and evaluations are equal."""
    for output in ("whole", "killed"):
        shutil.rmtree(run_folder / output, ignore_errors=True)
        (run_folder / f"{output}.log").unlink(missing_ok=True)
    result = run(
        run_folder, kill_and_resume.__file__, *flags, run_folder, "MODEL.DEVICE", device, *opts
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report == {"kills": kills, "different": [], "leftovers": []}
    checkpoint = load(run_folder / "killed" / "model_final.pth")
    has_states = bool(checkpoint["trainer"]["processes"][0]["random"]["cuda"])
    assert has_states == (torch.device(device).type == "cuda")
    assert checkpoint["trainer"]["data"]["num_images"] == 2 * iterations
    assert len(checkpoint["trainer"]["processes"]) == 1
    log = (run_folder / "killed.log").read_text()
    assert f"Evaluating after {iterations // 3} iterations: it was interrupted." in log
    if opts:
        averaged = load(run_folder / "killed" / "model_final_ema.pth")["model"]
        assert all(torch.equal(checkpoint["ema"][n], w) for n, w in averaged.items())


def test_the_running_normalizer_of_retinanet_is_resumed(run_folder, tmp_path, device):
    opts = [
        *("DATASETS.TRAIN", "('rsb_sample_train',)", "MODEL.WEIGHTS", "", "SEED", "1"),
        *("MODEL.RETINANET.NUM_CLASSES", "4", "MODEL.BACKBONE.FREEZE_AT", "0"),
        *("SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0"),
        *("MODEL.META_ARCHITECTURE", "RetinaNet"),  # the published one has none
        *("MODEL.DEVICE", device),
    ]

    def config(name, resume=False):
        end = ["SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path / name)]
        return make_config(run_folder, *opts, *end, resume=resume, config="retinanet_rsb_1x.yaml")

    with reproducible(device):
        whole = train(config("whole"))
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000001.pth", tmp_path / "resumed")
    (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
    with reproducible(device):
        resumed = train(config("resumed", resume=True), resume=True)
    assert whole.model.loss_normalizer == resumed.model.loss_normalizer != 100
    weights = load(tmp_path / "whole" / "model_final.pth")["model"]
    others = load(tmp_path / "resumed" / "model_final.pth")["model"]
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


def test_old_checkpoints_are_removed_across_a_resume(kept_run):
    names = sorted(p.name for p in kept_run.glob("*.pth"))
    assert names == ["model_0000006.pth", "model_0000007.pth", "model_final.pth"]
    assert find_newest_complete(str(kept_run)) == str(kept_run / "model_final.pth")


def test_a_new_run_is_not_confused_with_an_earlier_one(run_folder, tmp_path, caplog):
    output = ["OUTPUT_DIR", str(tmp_path / "run")]
    train(make_config(run_folder, "SOLVER.MAX_ITER", "2", *output))
    caplog.clear()
    trainer = Trainer(make_config(run_folder, "SOLVER.MAX_ITER", "3", *output))
    trainer.resume_or_load(resume=False)  # and is killed here
    assert "holds a run" in caplog.text and "model_final.pth" in caplog.text
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
