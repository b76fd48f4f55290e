"""From a YOLO data set to a trained model: tools/convert_data.py and train_net.py."""

import json
import os
import re
import shlex
import subprocess

import pytest
import torch

from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.label_files import yolo
from tests.helpers.runs.programs import call_train_net, load_tool

SMALL = [
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"),
    *("SOLVER.WARMUP_ITERS", "1", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", "run"),
    *("TEST.EVAL_PERIOD", "0"),
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
        (["my_yolo/images"], "has an unknown format"),
        (["my_yolo", "--split", "80"], "--split is 80; write the fraction"),
        (["my_yolo", "--classes", "a"], "--classes: a data set of yolo names its classes"),
        (["my_yolo", "--images", "my_yolo"], "--images: of YOLO"),
        (["my_yolo", "--from", "coco"], "my_yolo has no JSON files of COCO"),
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
    assert "train: 3 images, 2 of them background (1 without a label file), 1 object: cat 1" in out
    assert "note: train has no dog" in out and "objects listed twice left out: 1" in out
    assert 'DATASETS.TEST "()"' in out


def words_of_a_shell(out):
    """The words that a POSIX shell makes of what the program prints to be pasted."""
    pasted = out[out.index("DATASETS.COCO_JSON") :]
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {pasted}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


FOLDERS = [
    "it's",
    'say "hi" $HOME',
    "`id`",
    "a, b [x]",
    "back\\slash !x",
    "~root",
    "-dash",
    "new\nline",
]
FOLDERS += ["#1 & co; *?", "{a,b}", "ä 画", "\x1b[31m", os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_printed_words_are_read_back_as_they_are(tmp_path, convert_data, name):
    yolo(tmp_path / name / "in", {"a": "0 .5 .5 .1 .1", "b": "1 .5 .5 .1 .1"})
    out_folder = os.path.join(".", name, name)
    status, out, _ = convert_data(
        os.path.join(".", name, "in"), "--output", out_folder, "--split", "0.5"
    )
    assert status == 0
    cfg = load_config("", words_of_a_shell(out))
    paths = [[file, root] for _, file, root in cfg.DATASETS.COCO_JSON]
    images = tmp_path / name / "in" / "images"
    files = [tmp_path / name / name / f"{split}.json" for split in ("train", "val")]
    assert [list(map(os.path.abspath, pair)) for pair in paths] == [
        [*map(str, (f, images))] for f in files
    ]
    names = [name for name, _, _ in cfg.DATASETS.COCO_JSON]
    assert list(cfg.DATASETS.TRAIN) == names[:1] and list(cfg.DATASETS.TEST) == names[1:]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 2
    with catalogs_kept():  # as training does it, from the paths as they are in the config
        register_coco_json(cfg)


@pytest.mark.parametrize(
    "splits, train, test",
    [
        (["test"], [], ["out_test"]),
        (["val", "test"], [], ["out_val"]),
        (["train", "test"], ["out_train"], []),
    ],
)
def test_printed_options_by_split(tmp_path, convert_data, splits, train, test):
    rows = {f"{split}/a": "0 .5 .5 .1 .1\n1 .5 .5 .2 .1" for split in splits}
    head = "\n".join(f"{split}: images/{split}" for split in splits)
    yolo(tmp_path / "in", rows, head=head)
    status, out, _ = convert_data("in", "--output", "out")
    assert status == 0 and ("rsb-d2 eval" in out) == (not train) and "None" not in out
    cfg = load_config("", words_of_a_shell(out))
    assert [list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)] == [train, test]


@pytest.mark.parametrize("target", ["coco", "yolo"])
def test_names_that_are_not_utf_8_stop_in_one_line(tmp_path, convert_data, target):
    odd = os.fsdecode(b"caf\xe9")
    yolo(tmp_path / odd, {"a": "0 .5 .5 .1 .1", f"b/{odd}": "1 .5 .5 .1 .1", odd: None})
    status, out, err = convert_data(odd, "--output", "out", "--to", target)
    (line,) = err.splitlines()
    assert status == 2 and out == "" and not os.path.exists("out")
    assert "b/caf\\udce9.png: has a name that is not UTF-8; rename it (and 1 more mistake" in line
    # The folder above all of them may be called what it likes.
    for path in [*tmp_path.rglob(f"{odd}.*")]:
        path.unlink()
    status, out, err = convert_data(odd, "--output", "out", "--to", target)
    assert status == 0 and "train: 1 image, " in out
    if target == "coco":
        (entry,) = load_config("", words_of_a_shell(out)).DATASETS.COCO_JSON
        assert entry[2] == f"{odd}/images"
