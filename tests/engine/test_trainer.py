"""The trainer: non-finite losses, full disks, and output folders that hold an earlier run."""

import os
import re
import shutil
import subprocess

import pytest
from detectron2.engine import default_argument_parser

from rsb_d2 import Trainer, UserError
from rsb_d2.checkpoint import find_newest_complete
from rsb_d2.config.setup import setup
from rsb_d2.predictor import load_predict_config
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.resumable_run import load, make_config, train


def test_a_non_finite_loss_stops_the_run(run_folder, tmp_path, device):
    class Trained(Trainer):
        def run_step(self):
            if self.iter == 3:
                self.model.roi_heads.box_predictor.cls_score.bias.data.fill_(float("nan"))
            super().run_step()

    output = ["OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINT_PERIOD", "2", "MODEL.DEVICE", device]
    trainer = Trained(make_config(run_folder, "SOLVER.MAX_ITER", "6", *output))
    trainer.resume_or_load(resume=False)
    with pytest.raises(UserError) as e:
        trainer.train()
    message = str(e.value)
    assert "\n" not in message
    assert "iteration 3: the loss is not finite" in message
    assert re.search(r"loss_cls nan, loss_box_reg \d", message)
    assert len(re.findall(r"rsb_sample/train/\d+\.jpg", message)) == 2
    assert message.count("model_0000001.pth") == 1
    assert find_newest_complete(str(tmp_path)) == str(tmp_path / "model_0000001.pth")
    weights = load(tmp_path / "model_0000001.pth")["model"]
    assert all(w.isfinite().all() for w in weights.values())


def test_a_diverging_run_stops_with_one_line(run_folder, tmp_path, device):
    opts = ["SOLVER.MAX_ITER", "30", "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e30"]
    opts += ["MODEL.DEVICE", device]
    with pytest.raises(UserError, match=r"iteration \d+: .*(finite|diverged).*SOLVER.BASE_LR"):
        train(make_config(run_folder, *opts))


def test_a_full_disk_stops_the_run_with_one_line(run_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        opts = ["SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "1", "OUTPUT_DIR", str(disk)]
        opts += ["SOLVER.OPTIMIZER", "SGD"]
        with pytest.raises(UserError, match="No space left on device") as e:
            train(make_config(run_folder, *opts))
        assert "\n" not in str(e.value)
        complete = find_newest_complete(str(disk))
        assert load(complete)["iteration"] == int(complete[-11:-4])
        assert not list(disk.glob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


OF_A_RUN = {
    *("model_0000099.pth", "model_final.pth", "model_final_ema.pth", "model_best.pth"),
    *("last_checkpoint", "best.json", "metrics.json", "config.yaml", "log.txt"),
    *("curves.png", "detections.png", "events.out.tfevents.1.host.2.0"),
    *("inference", "inference_TTA", "ema", "predictions"),
}
OF_THE_USER = {"notes.txt", "model.onnx", "val", "my_model_best.pth"}


@pytest.fixture
def output(tmp_path):
    """The folder of a run, with files of the user in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in OF_A_RUN | OF_THE_USER:
        if "." in name or name == "last_checkpoint":
            (folder / name).write_text(f"old {name}")
        else:
            (folder / name).mkdir()
            (folder / name / "results.json").write_text("old")
    (folder / "last_checkpoint").unlink()  # as of a run that was left by a newer one
    return folder


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_moves_the_files_of_an_earlier_run(run_folder, output, resume):
    of_run = OF_A_RUN - {"last_checkpoint"}
    options = ["OUTPUT_DIR", str(output)]
    make_config(run_folder, *options, resume=resume)  # finds no checkpoint to resume from
    assert names_in(output) == OF_THE_USER | {"config.yaml", "log.txt", "earlier"}
    assert (output / "config.yaml").read_text() != "old config.yaml"
    assert names_in(output / "earlier" / "1") == of_run
    assert (output / "earlier" / "1" / "best.json").read_text() == "old best.json"
    assert (output / "earlier" / "1" / "predictions" / "results.json").read_text() == "old"
    log = (output / "log.txt").read_text()
    assert "old log.txt" not in log and str(output / "earlier" / "1") in log
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_predict_config(run=str(output))

    # A start without results leaves nothing worth a folder.
    make_config(run_folder, *options)
    assert names_in(output / "earlier") == {"1"}
    (output / "model_best.pth").touch()
    make_config(run_folder, *options)
    assert names_in(output / "earlier" / "2") == {"model_best.pth", "config.yaml", "log.txt"}


def test_weights_are_found_in_the_moved_earlier_run(run_folder, kept_run, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    weights = output / "model_final.pth"
    shutil.copyfile(kept_run / "model_final.pth", weights)
    cfg = make_config(run_folder, "OUTPUT_DIR", str(output), "MODEL.WEIGHTS", str(weights))
    assert cfg.MODEL.WEIGHTS == str(output / "earlier" / "1" / "model_final.pth")
    assert os.path.getsize(cfg.MODEL.WEIGHTS) == os.path.getsize(kept_run / "model_final.pth")


def test_an_evaluation_leaves_the_config_of_the_run(run_folder, kept_run, output):
    weights = str(kept_run / "model_final.pth")
    data = run_folder / "datasets" / "rsb_sample"
    sets = [["val", f"{data}/annotations/val.json", f"{data}/val"]]
    words = ["--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml"), "--eval-only"]
    words += ["DATASETS.COCO_JSON", str(sets), "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.TEST", "('val',)", "MODEL.TIMM.NAME", "resnet10t"]
    words += ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(output)]
    before = names_in(output)
    cfg = setup(default_argument_parser().parse_args(words))
    assert cfg.OUTPUT_DIR == str(output) and names_in(output) == before
    assert (output / "config.yaml").read_text() == "old config.yaml"
    assert (output / "log.txt").read_text() == "old log.txt"
    assert "resnet10t" in (output / "inference" / "config.yaml").read_text()
    assert (output / "inference" / "log.txt").exists()
