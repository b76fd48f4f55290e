"""Runs in Weights & Biases and MLflow, written by the packages themselves without a network."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rsb_d2 import UserError
from rsb_d2.addons import loggers
from rsb_d2.engine.tasks import check_config
from tests.helpers.paths import ROOT
from tests.helpers.runs.scripted_training import make_config, train

PROGRAM = ROOT / "tests" / "helpers" / "runs" / "logged_training.py"
ITERATIONS = 6


def run_killed_and_resumed(data, output, name, environment):
    """Train until a kill in the fifth iteration, then from the checkpoint of the fourth."""
    opts = ["SOLVER.MAX_ITER", str(ITERATIONS), "TEST.EVAL_PERIOD", "1", "LOGGERS", f"('{name}',)"]
    ids = []
    for kill_at, status in ((4, -signal.SIGKILL), (-1, 0)):
        command = [sys.executable, "-W", "ignore", PROGRAM, data, kill_at, *opts]
        done = subprocess.run(
            [*map(str, command), "OUTPUT_DIR", str(output)],
            cwd=output.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stderr[-3000:]
        assert "Cannot write" not in done.stderr
        ids.append(json.loads((output / "loggers.json").read_text())[name])
    assert ids[0] == ids[1]
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    losses = {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}
    return ids[0], losses


def read_wandb(path):
    """Read the records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, content, at, part = 32768, path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4) and len(part) >= length:  # complete, or its last part
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


@pytest.mark.slow
def test_a_killed_and_resumed_training_is_one_run_of_wandb(sample_data, tmp_path):
    pytest.importorskip("wandb")
    output = tmp_path / "run"
    # Of every 15 seconds, by default.
    environment = {"WANDB_MODE": "offline", "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.1"}
    run_id, losses = run_killed_and_resumed(sample_data, output, "wandb", environment)
    files = sorted(output.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    history, config, pictures = {}, {}, set()
    for record in (record for path in files for record in read_wandb(path)):
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            values = {name: json.loads(value) for name, value in items.items()}
            history.setdefault(values["_step"], {}).update(values)
            pictures |= {path for name, path in values.items() if name == "detections/path"}
    found = {i: values["total_loss"] for i, values in history.items() if "total_loss" in values}
    assert found == pytest.approx(losses) and len(losses) == ITERATIONS
    assert history[ITERATIONS]["bbox/AP"] == ITERATIONS
    assert config["MODEL"]["TIMM"]["NAME"] == "resnet10t"
    written = {path.name for path in output.glob("wandb/offline-run-*/files/media/images/*.png")}
    assert pictures and {Path(path).name for path in pictures} <= written


@pytest.mark.slow
def test_a_killed_and_resumed_training_is_one_run_of_mlflow(sample_data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # which mlflow-skinny lacks
    address = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {"MLFLOW_TRACKING_URI": address, "MLFLOW_EXPERIMENT_NAME": "detectors"}
    run_id, losses = run_killed_and_resumed(sample_data, tmp_path / "run", "mlflow", environment)
    client = mlflow.MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string="name = 'detectors'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "run", "FINISHED")
    found = {m.step: m.value for m in client.get_metric_history(run_id, "total_loss")}
    assert found == pytest.approx(losses) and len(losses) == ITERATIONS
    assert run.data.metrics["bbox/AP"] == ITERATIONS
    assert run.data.params["MODEL.TIMM.NAME"] == "resnet10t"
    monkeypatch.chdir(tmp_path)
    folder = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["SOLVER"]["MAX_ITER"] == ITERATIONS
    sizes = {Image.open(path).size for path in folder.glob("images/detections*step*.png")}
    assert sizes == {Image.open(tmp_path / "run" / "detections.png").size}


UNREACHABLE = "http://127.0.0.1:9"
NO_NETWORK = {
    "wandb": {
        **{"WANDB_MODE": "online", "WANDB_BASE_URL": UNREACHABLE, "WANDB_API_KEY": "0" * 40},
        "WANDB_INIT_TIMEOUT": "1",
    },
    "mlflow": {"MLFLOW_TRACKING_URI": UNREACHABLE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_NETWORK)
def test_a_server_that_does_not_answer_is_one_warning(
    name, sample_data, tmp_path, monkeypatch, caplog
):
    pytest.importorskip(name)
    for key, value in NO_NETWORK[name].items():
        monkeypatch.setenv(key, value)
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "3", "LOGGERS", f"('{name}',)"]
    cfg = make_config(sample_data, *opts)
    with caplog.at_level(logging.WARNING, "rsb_d2.engine"):
        train(cfg, [1.0, 2.0, 3.0])
    assert (tmp_path / "run" / "model_final.pth").exists()
    assert caplog.text.count("Cannot write metrics") == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("is_folder", [False, True], ids=["missing", "a folder of its name"])
def test_a_missing_package_is_named_with_its_installation(
    name, is_folder, sample_data, tmp_path, monkeypatch
):
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    if is_folder:  # which wandb makes, and which Python imports as an empty package
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.setattr(sys, "meta_path", [m for m in sys.meta_path if "Path" in repr(m)])
    else:
        monkeypatch.setitem(sys.modules, name, None)
    cfg = make_config(sample_data, "LOGGERS", f"('{name}',)")
    with pytest.raises(UserError, match=f"LOGGERS: {name} .*: pip install {name}$"):
        check_config(cfg)
    check_config(cfg, eval_only=True)  # which does not write there


class Memory(loggers.Logger):
    """A logger that keeps what it is given, and fails while `failures` is not empty."""

    package = "memory"
    failures = []
    calls = []

    @classmethod
    def check(cls):
        pass

    def _record(self, *call):
        if self.failures:
            raise self.failures.pop(0)
        self.calls.append(call)

    def start(self, name, run_id):
        self._record("start", name, run_id)
        return run_id or "1"

    def log(self, metrics, pictures, iteration):
        self._record("log", iteration, dict(metrics), {n: p.size for n, p in pictures.items()})

    def end(self, status):
        self._record("end", status)


@pytest.fixture
def memory(monkeypatch):
    """The class of a logger under the name "memory"."""
    from rsb_d2.extensions import LOGGERS

    monkeypatch.setattr(LOGGERS, "_paths", {"memory": f"{__name__}.Memory"})
    monkeypatch.setattr(Memory, "calls", [])
    monkeypatch.setattr(Memory, "failures", [])
    monkeypatch.setattr(loggers, "_PAUSE", 0)
    return Memory


def logged(calls):
    return {call[1]: call[2] for call in calls if call[0] == "log"}


def test_values_of_an_outage_are_sent_later(memory, sample_data, tmp_path, caplog):
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "4", "LOGGERS", "('memory',)"]
    memory.failures += [OSError("connection refused"), OSError("connection reset")]
    with caplog.at_level(logging.WARNING, "rsb_d2.engine"):
        train(make_config(sample_data, *opts), [1.0, 2.0, 3.0, 4.0])
    assert caplog.text.count("Cannot write metrics") == 1 and "connection refused" in caplog.text
    lines = map(json.loads, (tmp_path / "run" / "metrics.json").read_text().splitlines())
    expected = {line.pop("iteration"): line for line in lines}
    assert logged(memory.calls) == expected
    assert memory.calls[0] == ("start", "run", "") and memory.calls[-1] == ("end", "FINISHED")
    pictures = [call[1] for call in memory.calls if call[0] == "log" and call[3]]
    assert len(pictures) >= 2 and pictures[-1] == 4  # the last one is of the final model


def test_a_run_that_fails_and_is_resumed_is_continued(memory, sample_data, tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "4", "LOGGERS", "('memory',)"]
    cfg = make_config(sample_data, *opts, "SOLVER.CHECKPOINT_PERIOD", "2")
    with pytest.raises(IndexError):
        train(cfg, [1.0, 2.0])  # there is no third score
    assert memory.calls[-1] == ("end", "FAILED")
    memory.calls.clear()
    train(cfg, [3.0, 4.0], resume=True)
    assert memory.calls[0] == ("start", "run", "1") and memory.calls[-1] == ("end", "FINISHED")
    assert logged(memory.calls)[4]["bbox/AP"] == 4.0


def test_without_evaluations_between_steps_the_last_picture_is_logged(
    memory, sample_data, tmp_path
):
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "2", "LOGGERS", "('memory',)"]
    train(make_config(sample_data, *opts, "TEST.EVAL_PERIOD", "0"), [5.0])
    pictures = {call[1]: call[3].keys() for call in memory.calls if call[0] == "log" and call[3]}
    assert pictures == {2: {"detections"}} and logged(memory.calls)[2]["bbox/AP"] == 5.0


def test_a_new_training_is_a_new_run(memory, sample_data, tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "2", "LOGGERS", "('memory',)"]
    for _ in range(2):
        train(make_config(sample_data, *opts), [1.0, 2.0])
    assert [call for call in memory.calls if call[0] == "start"] == [("start", "run", "")] * 2


def test_an_unknown_logger_is_refused(sample_data):
    cfg = make_config(sample_data, "LOGGERS", "('tensorbord',)")
    with pytest.raises(UserError, match="LOGGERS: .*no logger 'tensorbord'; it has wandb, mlflow"):
        check_config(cfg)


@pytest.mark.parametrize(
    "name, accepted",
    [
        ("bbox/AP-person", "bbox/AP-person"),
        ("bbox/AP-T-shirt (child's)", "bbox/AP-T-shirt _child_s_"),
        ("bbox/AP-a//b/../c", "bbox/AP-a/b/c"),
        ("/loss/", "loss"),
        ("..", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_that_mlflow_accepts(name, accepted):
    assert loggers._mlflow_name(name) == accepted
    validation = pytest.importorskip("mlflow.utils.validation")
    validation._validate_metric_name(accepted)
