"""A run is resumed with its own config, or with another one if told so."""

import pytest

from rsb_d2 import UserError
from tests.helpers.runs.resumable_run import make_config


@pytest.mark.parametrize(
    "key, value, was",
    [
        ("MODEL.TIMM.NAME", "resnet34", "'resnet10t'"),
        ("SOLVER.IMS_PER_BATCH", "4", "2"),
        ("SEED", "2", "1"),
        ("SOLVER.BASE_LR", "0.5", "0.001"),
        ("DATASETS.TRAIN", "('rsb_sample_val',)", "['rsb_sample_train']"),
        ("INPUT.MIN_SIZE_TRAIN", "(64,)", "[64, 72, 80]"),
        ("DATALOADER.ASPECT_RATIO_GROUPING", "False", "True"),
    ],
)
def test_another_config_is_not_resumed_with(run_folder, kept_run, key, value, was):
    opts = [*("SOLVER.MAX_ITER", "9", "OUTPUT_DIR", str(kept_run)), key, value]
    before = (kept_run / "config.yaml").read_bytes()
    with pytest.raises(UserError) as e:
        make_config(run_folder, *opts, resume=True)
    message = str(e.value)
    assert f"{key} was {was} and is" in message and "\n" not in message
    assert "SOLVER.RESUME_WITH_CHANGES True" in message
    assert (kept_run / "config.yaml").read_bytes() == before


def test_classes_of_another_number_are_not_resumed_with(run_folder, kept_run):
    with pytest.raises(UserError, match="NUM_CLASSES"):
        make_config(
            run_folder, "MODEL.ROI_HEADS.NUM_CLASSES", "7", "OUTPUT_DIR", str(kept_run), resume=True
        )


def test_another_config_is_resumed_with_if_told_so(run_folder, kept_run, caplog):
    opts = ["SOLVER.MAX_ITER", "8", "OUTPUT_DIR", str(kept_run), "SEED", "2"]
    cfg = make_config(run_folder, *opts, "SOLVER.RESUME_WITH_CHANGES", "True", resume=True)
    assert cfg.SEED == 2
    assert "SEED was 1 and is 2" in caplog.text


def test_what_does_not_matter_may_differ(run_folder, kept_run, caplog):
    opts = ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(15,)", "OUTPUT_DIR", str(kept_run)]
    make_config(run_folder, *opts, "DATALOADER.NUM_WORKERS", "3", resume=True)
    assert "SOLVER.MAX_ITER was 8 and is 20" in caplog.text
