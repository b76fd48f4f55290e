"""Metrics, config and pictures of a training in Weights & Biases and MLflow (the key ``LOGGERS``).

Each logger is an ``EventWriter`` of Detectron2 and reads its package's own environment variables:
``WANDB_PROJECT``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and so on.
The packages are imported when a logger is first used.
"""

import contextlib
import importlib
import json
import os
import re
import sys
import time
import uuid
from typing import Callable, Dict, List, Tuple

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage
from PIL import Image

from ..checkpoint.run_folder import LOGGER_RUNS
from ..config import flat_items
from ..engine.hooks import StopTraining
from ..engine.signals import Interrupted
from ..errors import UserError
from ..files import whole_file

# Pictures that a training writes into OUTPUT_DIR, and writes again.
_PICTURES = ("training_images", "detections", "predictions")
# Iterations over which losses are smoothed, as in Detectron2's writers.
_WINDOW = 20
# Seconds until the next attempt after a failure, which may itself have taken minutes.
_PAUSE = 600
# Characters that MLflow refuses in the name of a metric or parameter, and the length it accepts.
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_MAX_NAME = 250

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


class Logger(EventWriter):
    """A writer that starts at its first values, and whose failures lose none of them.

    The run is started once: its id is kept in ``OUTPUT_DIR``, and a resumed training continues it.
    After a failure, such as a network that is down, values are kept in memory and sent later.
    :meth:`write` and :meth:`close` raise the first failure only.

    Args:
        cfg (CfgNode): of the training.
    """

    package = ""  # the name in LOGGERS, of the module, and on PyPI
    function = ""  # of the module, which a folder of the same name lacks

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg
        self._last_iteration = -1
        self._waiting: List[Tuple[Dict[str, float], int]] = []
        self._pictures = self._picture_times()
        self._is_started = False
        self._has_failed = False
        self._next_attempt = 0.0

    @classmethod
    def check(cls) -> None:
        """Check that the package is installed.

        Raises:
            UserError: if it is not.
        """
        try:
            if hasattr(importlib.import_module(cls.package), cls.function):
                return
        except ImportError:
            pass
        raise UserError(
            f"LOGGERS: {cls.package} is not installed; install it: pip install {cls.package}"
        )

    def write(self) -> None:
        by_iteration: Dict[int, Dict[str, float]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_iteration:
                by_iteration.setdefault(iteration, {})[name] = value
        self._last_iteration = max([self._last_iteration, *by_iteration])
        self._waiting += [(by_iteration[i], i) for i in sorted(by_iteration)]
        if time.monotonic() >= self._next_attempt:
            self._attempt(self._send)

    def close(self) -> None:
        status = _status()
        # A process that was told to end has no time for a server that does not answer.
        if not (self._has_failed and status == KILLED):
            self._attempt(lambda: self._send_all_and_end(status))

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            self._next_attempt = time.monotonic() + _PAUSE
            if not self._has_failed:
                self._has_failed = True
                raise

    def _send(self) -> None:
        if not self._is_started:
            self._start()
            self._is_started = True
        while self._waiting:
            metrics, iteration = self._waiting[0]
            pictures = self._new_pictures() if len(self._waiting) == 1 else {}
            with contextlib.ExitStack() as stack:
                paths = {name: self._picture_path(name) for name in pictures}
                opened = {n: stack.enter_context(Image.open(p)) for n, p in paths.items()}
                self.log(metrics, opened, iteration)
            self._pictures.update(pictures)
            del self._waiting[0]

    def _send_all_and_end(self, status: str) -> None:
        self._send()
        self.end(status)

    def _start(self) -> None:
        path = os.path.join(self._cfg.OUTPUT_DIR, LOGGER_RUNS)
        runs = {}
        if os.path.isfile(path):
            with open(path) as f:
                runs = json.load(f)
        name = os.path.basename(os.path.abspath(self._cfg.OUTPUT_DIR))
        runs[self.package] = self.start(name, runs.get(self.package, ""))
        with whole_file(path) as f:
            f.write(json.dumps(runs).encode())

    def _picture_times(self) -> Dict[str, int]:
        paths = {name: self._picture_path(name) for name in _PICTURES}
        return {n: os.stat(p).st_mtime_ns for n, p in paths.items() if os.path.isfile(p)}

    def _new_pictures(self) -> Dict[str, int]:
        times = self._picture_times()
        return {name: time for name, time in times.items() if time != self._pictures.get(name)}

    def _picture_path(self, name: str) -> str:
        return os.path.join(self._cfg.OUTPUT_DIR, f"{name}.png")

    # ---- of each package ----

    def start(self, name: str, run_id: str) -> str:
        """Start a run with the config of the training, or continue one.

        Args:
            name (str): of a new run.
            run_id (str): of the run to continue; "" for a new one.

        Returns:
            str: id of the run.
        """
        raise NotImplementedError

    def log(
        self, metrics: Dict[str, float], pictures: Dict[str, Image.Image], iteration: int
    ) -> None:
        """Log the metrics of one iteration, and pictures that were drawn since the last call.

        Iterations come in ascending order, each once.
        """
        raise NotImplementedError

    def end(self, status: str) -> None:
        """Send everything and end the run: ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``."""
        raise NotImplementedError


def _status() -> str:
    # Detectron2 closes its writers in a `finally` block, where the exception is the current one.
    error = sys.exc_info()[1]
    if error is None or isinstance(error, StopTraining):
        return FINISHED
    return KILLED if isinstance(error, (Interrupted, KeyboardInterrupt)) else FAILED


class WandbLogger(Logger):
    """Writes to Weights & Biases; files go to ``OUTPUT_DIR/wandb`` unless ``WANDB_DIR`` is set."""

    package = "wandb"
    function = "init"

    def start(self, name: str, run_id: str) -> str:
        import wandb

        # Without these, a question about the account and a lost network would wait forever.
        limits = {"login_timeout": 30, "finish_timeout": 600}
        limits = {k: v for k, v in limits.items() if f"WANDB_{k.upper()}" not in os.environ}
        self._run = wandb.init(
            id=run_id or uuid.uuid4().hex,
            name=name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", self._cfg.OUTPUT_DIR),
            config=yaml.safe_load(self._cfg.dump()),
            allow_val_change=True,
            settings=wandb.Settings(**limits),
        )
        return self._run.id

    def log(
        self, metrics: Dict[str, float], pictures: Dict[str, Image.Image], iteration: int
    ) -> None:
        import wandb

        images = {name: wandb.Image(image) for name, image in pictures.items()}
        # By default, wandb keeps the values of a step until the next one.
        self._run.log({**metrics, **images}, step=iteration, commit=True)

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == FINISHED else 1)


class MlflowLogger(Logger):
    """Writes to MLflow, where ``MLFLOW_TRACKING_URI`` says.

    Characters of names that MLflow does not accept, as in the names of classes, become ``_``.
    """

    package = "mlflow"
    function = "start_run"

    def start(self, name: str, run_id: str) -> str:
        import mlflow

        is_nested = mlflow.active_run() is not None  # in a script that has started one
        run = mlflow.start_run(run_id or None, run_name=name, nested=is_nested)
        self._run_id = run.info.run_id
        if not run.data.params:  # which cannot be changed
            config = yaml.safe_load(self._cfg.dump())
            mlflow.log_params({_mlflow_name(key): value for key, value in flat_items(config)})
        mlflow.log_text(self._cfg.dump(), "config.yaml", run_id=self._run_id)
        return self._run_id

    def log(
        self, metrics: Dict[str, float], pictures: Dict[str, Image.Image], iteration: int
    ) -> None:
        import mlflow

        metrics = {_mlflow_name(name): value for name, value in metrics.items()}
        mlflow.log_metrics(metrics, step=iteration, run_id=self._run_id)
        for name, image in pictures.items():
            mlflow.MlflowClient().log_image(self._run_id, image, key=name, step=iteration)

    def end(self, status: str) -> None:
        import mlflow

        mlflow.end_run(status)


def _mlflow_name(name: str) -> str:
    parts = [part for part in _NOT_IN_NAMES.sub("_", name).split("/") if part.strip(".")]
    return "/".join(parts)[:_MAX_NAME].rstrip("/") or "_"
