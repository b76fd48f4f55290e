"""The package: its public names, and its core without the optional layers."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.paths import CONFIGS, ROOT


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_without_detectron2_the_import_says_how_to_get_it():
    result = run_python("import sys; sys.modules['detectron2'] = None; import rsb_d2")
    assert result.returncode != 0
    assert "tools/install_detectron2.py" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_public_names_and_registered_backbones():
    result = run_python(
        "import rsb_d2\n"
        "for name in rsb_d2.__all__: getattr(rsb_d2, name)\n"
        "from detectron2.modeling import BACKBONE_REGISTRY as registry\n"
        "for name in ('', '_fpn', '_retinanet_fpn'): registry.get(f'build_timm{name}_backbone')\n"
    )
    assert result.returncode == 0, result.stderr


# Panoptic data has no COCO_JSON entry; tests/programs/test_datasets.py trains that config.
NAMES = sorted(
    path.name
    for path in CONFIGS.glob("*.yaml")
    if not path.name.startswith("Base-") and "panoptic" not in path.name
)
QUICK = ("mask_rcnn_rsb_1x.yaml",)
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", ""),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "4", "MODEL.RETINANET.NUM_CLASSES", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("DATASETS.TRAIN", "('t',)", "DATASETS.TEST", "('v',)"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.LSJ.SIZE", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"),
    *("SOLVER.MAX_EPOCHS", "0", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.STEP_EPOCHS", "[]"),
    *("DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0", "TEST.VAL_LOSS", "False"),
]
# Each config in a process forked from one that has imported everything.
RUN = """
import os, sys, traceback
# An editable installation would find the layers in the checkout.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
from detectron2.engine import default_argument_parser
import rsb_d2, train_net
assert not any(m.startswith(("rsb_d2.addons", "rsb_d2.pretraining")) for m in sys.modules)
failed = []
for config, *opts in {jobs!r}:
    child = os.fork()
    if not child:
        status = 1
        try:
            for words in {steps!r}:
                words = [word.format(output=opts[-1]) for word in words]
                flags = [word for word in words if word.startswith("--")]
                words = [word for word in words if not word.startswith("--")]
                train_net.main(default_argument_parser().parse_args(
                    ["--config-file", config, *flags, *opts, *words]))
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    failed += [config] if os.waitpid(child, 0)[1] else []
sys.exit(f"failed: {{failed}}" if failed else 0)
"""
STEPS = [
    ("SOLVER.MAX_ITER", "1"),
    ("--resume", "SOLVER.MAX_ITER", "2"),
    ("--eval-only", "MODEL.WEIGHTS", "{output}/model_final.pth"),
]


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """A copy of the package without its optional layers."""
    folder = tmp_path_factory.mktemp("core")
    without = shutil.ignore_patterns("addons", "pretraining", "__pycache__")
    shutil.copytree(ROOT / "rsb_d2", folder / "rsb_d2", ignore=without)
    shutil.copytree(CONFIGS, folder / "configs")
    shutil.copy(ROOT / "train_net.py", folder)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param([n for n in NAMES if n not in QUICK], id="all", marks=pytest.mark.slow),
    ],
)
def test_detectors_train_resume_and_are_evaluated(core, names, sample_data, tmp_path):
    images = [
        [name, str(sample_data / "annotations" / f"{split}.json"), str(sample_data / split)]
        for name, split in (("t", "train"), ("v", "val"))
    ]
    jobs = [
        [
            str(core / "configs" / name),
            *(*TINY, "DATASETS.COCO_JSON", str(images), "OUTPUT_DIR", str(tmp_path / name)),
        ]
        for name in names
    ]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN.format(jobs=jobs, steps=STEPS)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(core), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    for name in names:
        lines = (tmp_path / name / "metrics.json").read_text().splitlines()
        assert json.loads(lines[-1])["iteration"] >= 1, lines
        assert (tmp_path / name / "inference" / "coco_instances_results.json").is_file()
