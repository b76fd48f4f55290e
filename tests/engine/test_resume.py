"""A run that is stopped and goes on: nothing lost, nothing changed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

from rsb_d2 import Checkpointer, Trainer, UserError
from rsb_d2.checkpoint import find_newest_complete, remove_old_checkpoints
from rsb_d2.config.setup import setup
from rsb_d2.data.sample import make_sample_data
from tests.helpers.kill_and_resume import SMALL
from tests.helpers.paths import CONFIGS, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_sample_data(str(folder / "datasets" / "rsb_sample"), num_train=8, num_val=3)
    return folder


def run(folder, program, *arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(program), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        **kwargs,
    )


def check_kills(folder, *arguments):
    result = run(folder, ROOT / "tests" / "helpers" / "kill_and_resume.py", folder, *arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report == {"kills": 10, "different": [], "leftovers": []}


def test_a_run_that_is_killed_ends_as_one_that_never_stopped(folder):
    check_kills(folder)
    # Weights, optimizer, random states, place in the data, best AP and evaluations were compared.
    checkpoint = torch.load(folder / "killed" / "model_final.pth", weights_only=True)
    assert checkpoint["trainer"]["data"]["num_images"] == 24
    assert len(checkpoint["trainer"]["processes"]) == 1
    log = (folder / "killed.log").read_text()
    assert "Evaluating after 4 iterations: it was interrupted." in log


@pytest.mark.slow
@pytest.mark.parametrize(
    "opts",
    [
        ("--iterations", "30"),
        ("--workers", "4", "DATALOADER.ASPECT_RATIO_GROUPING", "False"),
        ("SOLVER.OPTIMIZER", "SGD", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("MODEL.TIMM.NAME", "seresnet50"),
        ("MODEL.MASK_ON", "True", "SEED", "5"),
    ],
)
def test_other_runs_that_are_killed(tmp_path, opts):
    make_sample_data(str(tmp_path / "datasets" / "rsb_sample"), num_train=12, num_val=3)
    check_kills(tmp_path, *opts)


def make_config(folder, *opts, resume=False, config="frcnn_rsb_sample.yaml"):
    data = folder / "datasets" / "rsb_sample"
    names = [[f"rsb_sample_{s}", f"{data}/annotations/{s}.json", f"{data}/{s}"] for s in SPLITS]
    return setup(
        default_argument_parser().parse_args(
            [
                *("--config-file", str(CONFIGS / config)),
                *(["--resume"] if resume else []),
                *(*SMALL, "DATASETS.COCO_JSON", str(names), "TEST.VAL_LOSS", "False"),
                *("MODEL.DEVICE", "cpu", "TEST.EVAL_PERIOD", "0"),
                *(*opts, "DATASETS.TEST", "()"),
            ]
        )
    )


SPLITS = ("train", "val")


def train(cfg, resume=False, cls=Trainer):
    trainer = cls(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def load(path):
    return torch.load(path, weights_only=True)


def test_the_running_normalizer_of_retinanet_is_resumed(folder, tmp_path):
    opts = [
        *("DATASETS.TRAIN", "('rsb_sample_train',)", "MODEL.WEIGHTS", "", "SEED", "1"),
        *("MODEL.RETINANET.NUM_CLASSES", "4", "MODEL.BACKBONE.FREEZE_AT", "0"),
        *("SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0"),
        *("MODEL.META_ARCHITECTURE", "RetinaNet"),  # the published one has none
    ]

    def config(name, resume=False):
        end = ["SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path / name)]
        return make_config(folder, *opts, *end, resume=resume, config="retinanet_rsb_1x.yaml")

    whole = train(config("whole"))
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000001.pth", tmp_path / "resumed")
    (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(config("resumed", resume=True), resume=True)
    assert whole.model.loss_normalizer == resumed.model.loss_normalizer != 100
    weights = load(tmp_path / "whole" / "model_final.pth")["model"]
    others = load(tmp_path / "resumed" / "model_final.pth")["model"]
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


# Which checkpoint is resumed from


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
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_taken(
    checkpoints, damage, caplog
):
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


def test_no_readable_checkpoint_is_an_error(checkpoints):
    for path in checkpoints.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="--resume: none of the checkpoints") as e:
        resumed_from(checkpoints)
    assert "\n" not in str(e.value)


def test_a_checkpoint_that_was_not_named_any_more_is_the_newest(checkpoints):
    (checkpoints / "last_checkpoint").write_text("model_0000003.pth")
    os.utime(checkpoints / "last_checkpoint", (1e9 + 4,) * 2)
    assert resumed_from(checkpoints) == 5


def test_what_a_longer_run_has_left_is_not_resumed_from(checkpoints):
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


@pytest.fixture(scope="module")
def kept(folder):
    """A run of eight iterations that keeps its two newest checkpoints, resumed after four."""
    output = folder / "kept"
    opts = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINT_KEEP", "2", "OUTPUT_DIR", output]
    opts = [str(o) for o in opts]
    train(make_config(folder, "SOLVER.MAX_ITER", "4", *opts))
    train(make_config(folder, "SOLVER.MAX_ITER", "8", *opts, resume=True), resume=True)
    return output


def test_so_many_checkpoints_are_kept_over_a_resume_too(kept):
    names = sorted(p.name for p in kept.glob("*.pth"))
    assert names == ["model_0000006.pth", "model_0000007.pth", "model_final.pth"]
    assert find_newest_complete(str(kept)) == str(kept / "model_final.pth")


def test_a_new_run_in_the_folder_of_another_is_not_confused_with_it(folder, tmp_path, caplog):
    output = ["OUTPUT_DIR", str(tmp_path / "run")]
    train(make_config(folder, "SOLVER.MAX_ITER", "2", *output))
    caplog.clear()
    trainer = Trainer(make_config(folder, "SOLVER.MAX_ITER", "3", *output))
    trainer.resume_or_load(resume=False)  # and is killed here
    assert "holds a run" in caplog.text and "model_final.pth" in caplog.text
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


# With another config


@pytest.mark.parametrize(
    "key, value, was",
    [
        ("MODEL.TIMM.NAME", "resnet34", "'resnet18'"),
        ("SOLVER.IMS_PER_BATCH", "4", "2"),
        ("SEED", "2", "1"),
        ("SOLVER.BASE_LR", "0.5", "0.001"),
        ("DATASETS.TRAIN", "('rsb_sample_val',)", "['rsb_sample_train']"),
        ("INPUT.MIN_SIZE_TRAIN", "(64,)", "[64, 72, 80]"),
        ("DATALOADER.ASPECT_RATIO_GROUPING", "False", "True"),
    ],
)
def test_another_config_is_not_resumed_with(folder, kept, key, value, was):
    opts = [*("SOLVER.MAX_ITER", "9", "OUTPUT_DIR", str(kept)), key, value]
    before = (kept / "config.yaml").read_bytes()
    with pytest.raises(UserError) as e:
        make_config(folder, *opts, resume=True)
    message = str(e.value)
    assert f"{key} was {was} and is" in message and "\n" not in message
    assert "SOLVER.RESUME_WITH_CHANGES True" in message
    assert (kept / "config.yaml").read_bytes() == before


def test_classes_of_another_number_are_not_resumed_with(folder, kept):
    with pytest.raises(UserError, match="NUM_CLASSES"):
        make_config(
            folder, "MODEL.ROI_HEADS.NUM_CLASSES", "7", "OUTPUT_DIR", str(kept), resume=True
        )


def test_another_config_is_resumed_with_if_told_so(folder, kept, caplog):
    opts = ["SOLVER.MAX_ITER", "8", "OUTPUT_DIR", str(kept), "SEED", "2"]
    cfg = make_config(folder, *opts, "SOLVER.RESUME_WITH_CHANGES", "True", resume=True)
    assert cfg.SEED == 2
    assert "SEED was 1 and is 2" in caplog.text


def test_what_does_not_matter_may_differ(folder, kept, caplog):
    opts = ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(15,)", "OUTPUT_DIR", str(kept)]
    make_config(folder, *opts, "DATALOADER.NUM_WORKERS", "3", resume=True)
    assert "SOLVER.MAX_ITER was 8 and is 20" in caplog.text


# A loss that is no number, and a full disk


def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path):
    class Trained(Trainer):
        def run_step(self):
            if self.iter == 3:
                self.model.roi_heads.box_predictor.cls_score.bias.data.fill_(float("nan"))
            super().run_step()

    output = ["OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINT_PERIOD", "2"]
    trainer = Trained(make_config(folder, "SOLVER.MAX_ITER", "6", *output))
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


def test_a_run_that_diverges_stops_in_a_line(folder, tmp_path):
    opts = ["SOLVER.MAX_ITER", "30", "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e30"]
    with pytest.raises(UserError, match=r"iteration \d+: .*(finite|diverged).*SOLVER.BASE_LR"):
        train(make_config(folder, *opts))


def test_a_full_disk_stops_the_run_in_a_line(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        opts = ["SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "1", "OUTPUT_DIR", str(disk)]
        opts += ["SOLVER.OPTIMIZER", "SGD"]
        with pytest.raises(UserError, match="No space left on device") as e:
            train(make_config(folder, *opts))
        assert "\n" not in str(e.value)
        complete = find_newest_complete(str(disk))
        assert load(complete)["iteration"] == int(complete[-11:-4])
        assert not list(disk.glob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# Signals

LONG = [
    *("DATASETS.SAMPLE_DATA", "", "MODEL.TIMM.NAME", "resnet18", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "100000"),
    *("SOLVER.CHECKPOINT_PERIOD", "100000", "TEST.EVAL_PERIOD", "0", "SOLVER.OPTIMIZER", "SGD"),
]


def start(folder, output, *opts, launcher=()):
    program = [*(launcher or [sys.executable]), str(ROOT / "train_net.py")]
    config = ["--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml")]
    with open(f"{output}.log", "w") as log:
        return subprocess.Popen(
            [*program, *config, *opts, *LONG, "OUTPUT_DIR", str(output)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(text, output, process, timeout=120):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        log = Path(f"{output}.log").read_text()
        if text in log:
            return
        assert process.poll() is None, log[-3000:]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"{text!r} is not in the log: {log[-3000:]}")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_a_checkpoint(folder, tmp_path, number, status):
    output = tmp_path / "run"
    process = start(folder, output, "DATALOADER.NUM_WORKERS", "2")
    try:
        wait_for("Starting training", output, process)
        wait_for("iter: 19", output, process)
        os.killpg(process.pid, number)  # the loader's workers get it as well, as from Ctrl-C
        assert process.wait(timeout=120) == status
    finally:
        process.kill()
    log = Path(f"{output}.log").read_text()
    assert "Traceback" not in log
    assert "Stopped by a signal after" in log
    newest = load(find_newest_complete(str(output)))
    assert newest["iteration"] + 1 == int(re.search(r"signal after (\d+) iter", log)[1])
    assert newest["trainer"]["data"]["num_images"] == 2 * (newest["iteration"] + 1)


def test_a_second_signal_ends_the_run_at_once():
    program = """
import os, signal, sys, time
from rsb_d2.engine.signals import SignalWatch
watch = SignalWatch()
watch.start()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)  # of the same sender, or passed on by a launcher
print(watch.received, flush=True)
if len(sys.argv) > 1:
    time.sleep(0.8)
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        time.sleep(0.1)
watch.stop()
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    once = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (once.stdout.split(), once.returncode) == (["15", "True"], 0), once.stderr
    twice = subprocess.run([sys.executable, "-c", program, "2"], capture_output=True, text=True)
    assert (twice.stdout.split(), twice.returncode) == (["15"], 130), twice.stderr


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(folder, tmp_path):
    class Interrupted(Trainer):
        @classmethod
        def test(cls, cfg, model):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            raise AssertionError("the evaluation has come to its end")

    cfg = make_config(folder, "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path))
    cfg.defrost()
    cfg.TEST.EVAL_PERIOD = 2
    cfg.DATASETS.TEST = ("rsb_sample_val",)
    cfg.freeze()
    trainer = Interrupted(cfg)
    trainer.resume_or_load(resume=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as e:
        trainer.train()
    assert e.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    newest = find_newest_complete(str(tmp_path))
    assert newest == str(tmp_path / "model_0000001.pth")
    assert load(newest)["iteration"] == 1
