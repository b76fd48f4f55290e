"""The best checkpoint, and the early end of a training that does not improve."""

import json

import pytest
import torch

from rsb_d2.addons.workbench.sample import CLASS_NAMES
from rsb_d2.config.check_best_metric import check_best_metric
from rsb_d2.engine.validation import MetricHistory
from tests.helpers.runs.scripted_training import CLASS_IDS, load, make_config, train


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

    # A new run in the same folder starts anew.
    train(config(1), [5.0])
    assert load(output / "model_best.pth")["iteration"] <= 1
    assert json.loads((output / "best.json").read_text())["best"]["value"] == 5.0


def test_early_stop_ends_the_run_as_any_other_ends(sample_data, tmp_path):
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


def test_a_validation_loss_can_be_the_metric(sample_data, tmp_path):
    cfg = make_config(
        *(sample_data, "SOLVER.BEST_METRIC", "val_total_loss", "TEST.VAL_LOSS", "True"),
        *("OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2"),
    )
    check_best_metric(cfg)
    train(cfg, [1.0, 2.0])
    history = json.loads((tmp_path / "best.json").read_text())
    values = [e["value"] for e in history["evaluations"]]
    assert history["mode"] == "min" and history["best"]["value"] == min(values)


def test_a_class_whose_name_has_loss_in_it(sample_data, tmp_path):
    content = json.loads((sample_data / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "blossom"
    for split in ("train", "val"):
        content_of_split = json.loads((sample_data / "annotations" / f"{split}.json").read_text())
        content_of_split["categories"] = content["categories"]
        path = tmp_path / "data" / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content_of_split))
        (tmp_path / "data" / split).symlink_to(sample_data / split)
    cfg = make_config(
        *(tmp_path / "data", "SOLVER.BEST_METRIC", "bbox/AP-blossom"),
        *("OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "2"),
    )
    check_best_metric(cfg)
    train(cfg, [{"AP-blossom": 33.5}, {"AP-blossom": 2.8}])
    history = json.loads((tmp_path / "run" / "best.json").read_text())
    assert history["mode"] == "max" and history["best"] == {"iterations": 1, "value": 33.5}
    assert load(tmp_path / "run" / "model_best.pth")["iteration"] == 0


def test_no_best_checkpoint_without_evaluations_on_the_way(sample_data, tmp_path):
    cfg = make_config(
        sample_data, "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path)
    )
    train(cfg, [10.0])
    assert not (tmp_path / "model_best.pth").exists()


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


def test_a_damaged_history_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "best.json").write_text("{")
    history = MetricHistory(str(tmp_path / "best.json"), "bbox/AP")
    history.load(100)
    assert history.best is None and "cannot be read" in caplog.text
