"""tools/miniature.py: what it trains, what it keeps, and the table; with small trainings."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.slow
def test_real_trainings(tmp_path):
    """In seconds, on little data, with the smallest of models."""
    data = tmp_path / "data"
    changes = {
        "DETECTOR": (
            "configs/frcnn_rsb_sample.yaml",
            "MODEL: {DEVICE: cpu, TIMM: {NAME: resnet18}, FPN: {OUT_CHANNELS: 32}}\n"
            "INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}\n"
            "SOLVER: {IMS_PER_BATCH: 2}\n"
            "DATASETS:\n  COCO_JSON:\n"
            f"    - [rsb_sample_train, {data}/a/annotations/train.json, {data}/a/train]\n"
            f"    - [rsb_sample_val, {data}/a/annotations/val.json, {data}/a/val]\n",
        ),
        "a3": ("configs/pretrain/resnet50_rsb_sample.yaml", ""),
        "2015": ("configs/pretrain/resnet50_2015_sample.yaml", ""),
    }
    classifier = (
        "MODEL: {DEVICE: cpu, TIMM: {NAME: resnet18}}\n"
        "INPUT: {CLASSIFIER: {TRAIN_SIZE: 32, TEST_SIZE: 32}}\nSOLVER: {IMS_PER_BATCH: 8}\n"
        "DATASETS:\n  IMAGE_FOLDER:\n"
        f"    - [rsb_objects_train, {data}/b/train]\n    - [rsb_objects_val, {data}/b/val]\n"
    )
    lines = ["import sys; sys.argv[0] = 'miniature.py'", "import miniature as m"]
    for name, (base, text) in changes.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"_BASE_: {ROOT / base}\n{text or classifier}")
        target = "m.DETECTOR" if name == "DETECTOR" else f"m.PRETRAINING[{name!r}]"
        lines.append(f"{target} = {str(path)!r}")
    lines += [
        "from rsb_d2.addons.workbench.sample import make_sample_data, make_sample_objects",
        f"make_sample_data({str(data / 'a')!r}, num_train=4, num_val=2, image_size=64)",
        f"make_sample_objects({str(data / 'b')!r}, num_train=16, num_val=8, image_size=32)",
        "sys.exit(m.main())",
    ]
    sizes = ["--iterations", "4", "--pretrain-iterations", "3", "--seeds", "1", "--rates", "0.01"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), "--output", str(tmp_path / "m"), *sizes],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "m" / "miniature.json").read_text())["rows"]
    assert len(rows) == 3 and all(0 <= row["AP"] <= 100 for row in rows)
    log = (tmp_path / "m" / "detector_a3_1" / "log.txt").read_text()
    assert "loaded:  the complete backbone" in log and "unused in the file: fc (2)" in log
