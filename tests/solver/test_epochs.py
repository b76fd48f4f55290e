"""A schedule in epochs: how many iterations, and what of two contradictory values counts."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser
from detectron2.solver import build_lr_scheduler
from timm.scheduler import CosineLRScheduler

from rsb_d2 import UserError
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.config.loading import load_config
from rsb_d2.config.setup import setup
from rsb_d2.solver.epochs import epochs_to_iterations, resolve_epochs
from tests.helpers.paths import CONFIGS


def test_iterations_of_imagenet():
    # 1,281,167 images in batches of 2,048 are 625.57 iterations an epoch.
    assert epochs_to_iterations(100, 1_281_167, 2048) == math.ceil(100 * 1_281_167 / 2048) == 62557
    assert epochs_to_iterations(5, 1_281_167, 2048) == 3128
    assert epochs_to_iterations(3, 8, 4) == 6
    assert epochs_to_iterations(0, 8, 4) == 0


def resolved(*opts, num_images=100, file=""):
    cfg = load_config(file, ["SOLVER.IMS_PER_BATCH", "8", *opts])
    resolve_epochs(cfg, num_images)
    return cfg.SOLVER


def test_length_warm_up_and_steps():
    opts = ["SOLVER.MAX_EPOCHS", "12", "SOLVER.WARMUP_EPOCHS", "1", "SOLVER.STEP_EPOCHS", "(8, 11)"]
    solver = resolved(*opts)
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.STEPS) == (150, 13, (100, 138))
    # The values in a run's config.yaml give the same result.
    opts += ["SOLVER.MAX_ITER", "150", "SOLVER.WARMUP_ITERS", "13", "SOLVER.STEPS", "(100, 138)"]
    assert resolved(*opts) == solver
    assert resolved("SOLVER.MAX_EPOCHS", "12").WARMUP_ITERS == 1000  # Detectron2's


@pytest.mark.parametrize(
    "epochs, iterations, says",
    [
        (("MAX_EPOCHS", "12"), ("MAX_ITER", "90"), "MAX_ITER is 90; write 150 or .*MAX_EPOCHS 0"),
        (("WARMUP_EPOCHS", "2"), ("WARMUP_ITERS", "5"), "WARMUP_EPOCHS 2 is 25 iterations .*is 5"),
        (("STEP_EPOCHS", "[2]"), ("STEPS", "(5,)"), r"is \[5\]; .*SOLVER.STEP_EPOCHS \[\]"),
    ],
)
def test_contradicting_values_are_refused(epochs, iterations, says):
    words = [w for key, value in (epochs, iterations) for w in (f"SOLVER.{key}", value)]
    with pytest.raises(UserError, match=says) as error:
        resolved(*words)
    assert "\n" not in str(error.value)


def test_the_last_of_several_values_counts(tmp_path):
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("SOLVER:\n  MAX_ITER: 7\n  WARMUP_EPOCHS: 1\n")
    child.write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_EPOCHS: 2\n")
    solver = resolved(file=str(child))
    assert (solver.MAX_EPOCHS, solver.MAX_ITER, solver.WARMUP_ITERS) == (2, 25, 13)
    solver = resolved("SOLVER.MAX_ITER", "9", "SOLVER.WARMUP_ITERS", "0", file=str(child))
    assert (solver.MAX_EPOCHS, solver.MAX_ITER) == (0, 9)
    assert (solver.WARMUP_EPOCHS, solver.WARMUP_ITERS) == (0, 0)
    solver = resolved("SOLVER.MAX_EPOCHS", "4", file=str(base))
    assert (solver.MAX_EPOCHS, solver.MAX_ITER) == (4, 50)
    assert resolved(file=str(base)).MAX_ITER == 7


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs")
    make_sample_data(str(folder / "rsb_sample"), num_train=11, num_val=3)
    return folder


def run_setup(data, output, *opts, eval_only=False):
    folder = data / "rsb_sample"
    sets = [[f"epochs_{s}", f"{folder}/annotations/{s}.json", f"{folder}/{s}"] for s in SPLITS]
    return setup(
        default_argument_parser().parse_args(
            [
                *("--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml")),
                *(["--eval-only"] if eval_only else []),
                *("MODEL.TIMM.NAME", "resnet18", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output)),
                *("DATASETS.COCO_JSON", str(sets)),
                *("DATASETS.TRAIN", "('epochs_train',)", "DATASETS.TEST", "('epochs_val',)"),
                *("SOLVER.IMS_PER_BATCH", "4", *opts),
            ]
        )
    )


SPLITS = ("train", "val")


def test_train_net_takes_the_number_of_images_from_the_data(data, tmp_path):
    cfg = run_setup(data, tmp_path, "SOLVER.MAX_EPOCHS", "3", "SOLVER.WARMUP_EPOCHS", "1")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (9, 3)  # 33 / 4, 11 / 4, rounded up
    written = load_config(str(tmp_path / "config.yaml"), [])
    assert (written.SOLVER.MAX_EPOCHS, written.SOLVER.MAX_ITER) == (3, 9)


@pytest.mark.skipif(
    "RANDOM_SUBSET_RATIO" not in get_cfg().DATALOADER, reason="a key of Detectron2's main branch"
)
def test_an_epoch_of_a_random_subset(data, tmp_path):
    subset = ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"]
    subset += ["DATALOADER.RANDOM_SUBSET_RATIO", "0.5", "SOLVER.MAX_EPOCHS", "4"]
    assert run_setup(data, tmp_path, *subset).SOLVER.MAX_ITER == 5  # of 5 images


def rates(make_scheduler, num_iterations, step):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.005)
    scheduler = make_scheduler(optimizer)
    found = []
    for i in range(num_iterations):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        step(scheduler, i + 1)
    return found


def test_the_cosine_schedule_equals_timms_after_the_warmup():
    """Where timm's per-update schedule and Detectron2's differ: in the warm-up alone.

    timm rises to the full rate, and falls from there to what the cosine is by then; Detectron2
    rises to what the cosine is at the end of the warm-up.
    """
    total, warm_up, rate, factor = 100, 5, 0.005, 0.0001
    opts = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_FACTOR", str(factor)]
    opts += ["SOLVER.BASE_LR", str(rate), "SOLVER.MAX_ITER", str(total)]
    cfg = load_config("", [*opts, "SOLVER.WARMUP_ITERS", str(warm_up)])
    ours = rates(lambda o: build_lr_scheduler(cfg, o), total, lambda s, _: s.step())
    theirs = rates(
        lambda o: CosineLRScheduler(
            o,
            t_initial=total,
            warmup_t=warm_up,
            warmup_lr_init=factor * rate,
            t_in_epochs=False,
        ),
        total,
        lambda s, t: s.step_update(t),
    )
    assert ours[warm_up:] == pytest.approx(theirs[warm_up:], rel=1e-12)
    end = 0.5 * (1 + math.cos(math.pi * warm_up / total))
    for i in range(warm_up):
        at = i / warm_up
        assert theirs[i] == pytest.approx(rate * (factor + at * (1 - factor)), rel=1e-12)
        assert ours[i] == pytest.approx(rate * (factor + at * (end - factor)), rel=1e-12)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    assert max(abs(a - b) for a, b in zip(ours, theirs)) < rate * (1 - end) < 0.007 * rate
