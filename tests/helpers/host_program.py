"""A program that imports every module of the package and prints what that has changed.

Modules of other packages are imported first, so that their changes do not count.
"""

import ast
import atexit
import gc
import importlib
import json
import locale
import logging
import os
import pkgutil
import random
import resource
import signal
import socket
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Whose functions, classes and values nobody else may replace.
OTHERS = (
    *("detectron2", "fvcore", "iopath", "yacs", "yaml", "timm", "torchvision", "numpy", "cv2"),
    *("PIL", "matplotlib", "pycocotools", "hotcoco", "lvis", "logging", "warnings"),
    "multiprocessing",
)
calls = []  # of what leaves no trace


def imports_at_the_top(path):
    """The modules that a file imports of other packages when it is imported itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        for child in ast.iter_child_nodes(node):
            child.parent = node
        inside = node
        while hasattr(inside, "parent") and not isinstance(inside, ast.FunctionDef):
            inside = inside.parent
        if isinstance(inside, ast.FunctionDef):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def state():
    """What a program and all libraries in it share, by name."""
    import cv2
    import matplotlib
    import numpy as np
    import torch
    import torch.multiprocessing as mp
    import yaml
    from PIL import Image, ImageFile

    cudnn, cuda, mkldnn = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "import paths": (list(sys.path), list(sys.meta_path), list(sys.path_hooks)),
        "garbage collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "calls": list(calls),
        "exit hooks": atexit._ncallbacks(),
        "recursion": sys.getrecursionlimit(),
        "limits": {
            n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if "LIMIT_" in n
        },
        "threads": [t.name for t in threading.enumerate() if t.name != "tqdm_monitor"],
        "warnings": list(warnings.filters),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals() - {signal.SIGCHLD}},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "locale": locale.setlocale(locale.LC_ALL),
        "sockets": socket.getdefaulttimeout(),
        "random": random.getstate(),
        "NumPy's random": [str(part) for part in np.random.get_state()],
        "torch's random": torch.get_rng_state().tolist(),
        "start method": mp.get_start_method(allow_none=True),
        "sharing": mp.get_sharing_strategy(),
        "NumPy": (np.geterr(), np.get_printoptions()),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (
            *(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
            *(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
            *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
            *(cuda.matmul.allow_tf32, mkldnn.enabled),
        ),
        "OpenCV": (cv2.getNumThreads(), cv2.useOptimized(), cv2.utils.logging.getLogLevel()),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "matplotlib": dict(
            dict.items(matplotlib.rcParams)
        ),  # as it is, without looking for a screen
        "YAML": {
            name: (
                dict(vars(t).get("yaml_constructors", {})),
                dict(vars(t).get("yaml_representers", {})),
            )
            for name, t in vars(yaml).items()
            if isinstance(t, type)
        },
        "logging": (logging.raiseExceptions, logging.root.manager.disable, logging.lastResort),
    }
    for logger in loggers:
        if isinstance(logger, logging.Logger) and not logger.name.startswith("rsb_d2"):
            levels = logger.level, logger.propagate, logger.disabled
            found[f"logger {logger.name}"] = (*levels, list(logger.handlers), list(logger.filters))
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in OTHERS:
            for key, value in list(vars(module).items()):
                found[f"{name}.{key}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    attributes = {k: id(v) for k, v in vars(value).items() if k[:5] != "_abc_"}
                    found |= {f"{name}.{key}.{k}": v for k, v in attributes.items()}
    return found


def record_calls(module, name):
    function = getattr(module, name)

    def recorded(*args, **kwargs):
        calls.append(f"{module.__name__}.{name}")
        return function(*args, **kwargs)

    setattr(module, name, recorded)


def import_all():
    import rsb_d2

    for module in pkgutil.walk_packages(rsb_d2.__path__, "rsb_d2."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main():
    for path in sorted((ROOT / "rsb_d2").rglob("*.py")):
        for name in imports_at_the_top(path):
            with suppress(ImportError):
                importlib.import_module(name)
    before = state()
    for module, name in ((os, "register_at_fork"), (gc, "freeze"), (signal, "signal")):
        record_calls(module, name)
    import_all()
    after = state()
    modules = [name for name in sys.modules if name.split(".")[0] == "rsb_d2"]
    changed = [name for name in before if before[name] != after.get(name)]
    print(json.dumps({"modules": len(modules), "changed": changed, "calls": calls}))


if __name__ == "__main__":
    main()
