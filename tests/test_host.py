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


def changes():
    program = ROOT / "tests" / "helpers" / "host_program.py"
    command = [sys.executable, "-W", "ignore", program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["modules"] > 60
    return found


def test_importing_every_module_changes_nothing():
    found = changes()
    assert (found["changed"], found["calls"]) == ([], [])


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
