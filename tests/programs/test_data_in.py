"""From a YOLO data set to a trained model: tools/convert_data.py and train_net.py."""

import json
import re
import shlex

import pytest
import torch

from rsb_d2.addons.workbench.sample import make_sample_data
from tests.helpers.data.label_files import yolo
from tests.helpers.runs.programs import call_train_net, load_tool

SMALL = [
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"),
    *("SOLVER.WARMUP_ITERS", "1", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", "run"),
    *("DATASETS.SAMPLE_DATA", "", "TEST.EVAL_PERIOD", "0"),
]


@pytest.fixture
def convert_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["convert_data.py", *words])
        status = load_tool("convert_data").main()
        return status, *capsys.readouterr()

    return run


def test_a_yolo_data_set_trains_from_two_commands(tmp_path, convert_data):
    make_sample_data(str(tmp_path / "sample"), num_train=8, num_val=2)
    # YOLO's folders, of which the conversion here is the one that is tested elsewhere.
    names = (*("sample/annotations/train.json", "--images", "sample/train"), "--to", "yolo")
    assert convert_data(*names, "--output", "my_yolo")[0] == 0
    status, out, _ = convert_data(
        "my_yolo", "--output", "my_coco", "--split", "0.75", "--seed", "1"
    )
    assert status == 0 and "train: 6 images" in out and "val: 2 images" in out
    # What the program says to train with, as it says it.
    said = re.search(r"(DATASETS\.COCO_JSON.*NUM_CLASSES 4)", out, re.S)[1]
    options = shlex.split(said.replace("\\\n", " "))
    config = str(load_tool("predict").__file__).replace(
        "tools/predict.py", "configs/frcnn_rsb_sample.yaml"
    )
    call_train_net(tmp_path, "--config-file", config, *options, *SMALL)
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert list(weights["class_names"]) == ["circle", "square", "triangle", "star"]
    results = json.loads((tmp_path / "my_coco" / "val.json").read_text())
    assert len(results["images"]) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "there is no file or folder nowhere"),
        (["my_yolo/labels"], "has no data.yaml"),
        (["my_yolo/images"], "of no format that is known"),
        (["my_yolo", "--split", "80"], "--split is 80; it is the share"),
        (["my_yolo", "--classes", "a"], "--classes: a data set of yolo names its classes"),
        (["my_yolo", "--images", "my_yolo"], "--images: of YOLO"),
        (["my_yolo", "--from", "coco"], "name the folder of the images with --images"),
    ],
)
def test_mistakes_get_a_line(tmp_path, convert_data, words, message):
    yolo(tmp_path / "my_yolo", {"a": "0 .5 .5 .1 .1", "b": "1 .5 .5 .1 .1"})
    status, out, err = convert_data(*words, "--output", "out")
    assert status == 2 and out == "" and len(err.strip().splitlines()) == 1
    assert err.startswith("convert_data.py: error: ") and message in err
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".conv*"))


def test_what_is_said(tmp_path, convert_data):
    rows = {"a": "0 .5 .5 .1 .1\n0 .5 .5 .1 .1", "b": "", "c": None}
    yolo(tmp_path / "my_yolo", rows)
    status, out, _ = convert_data("my_yolo", "--output", "out")
    assert status == 0
    assert "train: 3 images, 2 of them background (1 without a label file), 1 objects: cat 1" in out
    assert "note: train has no dog" in out and "1 objects that are there twice left out" in out
    assert 'DATASETS.TEST "()"' in out
