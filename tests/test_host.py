"""A library changes nothing in the program that it is a part of."""

import json
import os
import pickle
import subprocess
import sys

from detectron2.config import get_cfg

from rsb_d2 import add_rsb_config
from rsb_d2.addons.storage import remote
from rsb_d2.data import register_coco_json
from rsb_d2.data.workers import SETTINGS
from tests.helpers.paths import ROOT

# Imports what the package's modules import from other packages, then the package itself; prints
# the names of the global objects that differ afterwards.
PROGRAM = """
import ast, gc, importlib, json, locale, logging, os, pkgutil, random, signal, sys, threading
import warnings
from contextlib import suppress
from pathlib import Path
import cv2, detectron2, matplotlib, numpy as np, PIL.Image, PIL.ImageFile, torch, yaml
OTHERS = ("detectron2", "fvcore", "iopath", "yacs", "yaml", "timm", "torchvision", "numpy", "cv2",
          "PIL", "matplotlib", "pycocotools", "hotcoco", "lvis", "logging", "warnings")

def state():
    found = {
        "environment": dict(os.environ), "directory": os.getcwd(), "paths": list(sys.path),
        "garbage collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "recursion": sys.getrecursionlimit(), "warnings": list(warnings.filters),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "locale": locale.setlocale(locale.LC_ALL), "random": random.getstate(),
        "NumPy": (str(np.random.get_state()), np.geterr(), np.get_printoptions()),
        "torch": (torch.get_rng_state().tolist(), torch.get_num_threads(),
                  torch.get_default_dtype(), torch.is_grad_enabled(),
                  torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled,
                  torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark,
                  torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
                  torch.multiprocessing.get_sharing_strategy(),
                  torch.multiprocessing.get_start_method(allow_none=True)),
        "OpenCV": (cv2.getNumThreads(), cv2.useOptimized()),
        "Pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
        "matplotlib": dict(dict.items(matplotlib.rcParams)),
        "YAML": dict(yaml.SafeLoader.yaml_constructors),
        "logging": (logging.raiseExceptions, logging.root.manager.disable, logging.lastResort),
    }
    for name, logger in [("", logging.root), *logging.Logger.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and not name.startswith("rsb_d2"):
            found[f"logger {name}"] = (logger.level, logger.propagate, list(logger.handlers))
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in OTHERS:
            for key, value in list(vars(module).items()):
                found[f"{name}.{key}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    attributes = {k: id(v) for k, v in vars(value).items() if k[:5] != "_abc_"}
                    found |= {f"{name}.{key}.{k}": v for k, v in attributes.items()}
    return found

def imports_of(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))

for path in Path(sys.argv[1], "rsb_d2").rglob("*.py"):
    for name in imports_of(path):
        with suppress(ImportError):
            importlib.import_module(name)
before = state()
import rsb_d2
for module in pkgutil.walk_packages(rsb_d2.__path__, "rsb_d2."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = state()
modules = [name for name in sys.modules if name.split(".")[0] == "rsb_d2"]
print(json.dumps([len(modules), [name for name in before if before[name] != after.get(name)]]))
"""


def test_importing_every_module_changes_nothing():
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, ROOT]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    modules, changed = json.loads(result.stdout.splitlines()[-1])
    assert modules > 60 and changed == []


def test_settings_for_copies_reach_workers_without_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_settings", ("", 0.0))
    monkeypatch.setattr("os.environ", {"FVCORE_CACHE": str(tmp_path)})
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.CACHE, cfg.DATASETS.IMAGE_CACHE_GB = str(tmp_path / "cache"), 3
    register_coco_json(cfg)
    expected = str(tmp_path / "cache" / "images"), 3.0
    assert remote._settings == expected
    for_workers = pickle.dumps(list(SETTINGS.values()))
    remote.set_cache("", 0)
    for set_in_worker in pickle.loads(for_workers):
        set_in_worker()
    assert remote._settings == expected
    assert os.environ == {"FVCORE_CACHE": str(tmp_path)}
