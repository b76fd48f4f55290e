"""The commands of the README and of every page in docs/ do what the page says.

They are found in the pages themselves, and run as they stand and in the order of the page, each
page in a folder like a fresh clone, whose configs are made small enough for seconds. What comes
from the network lies in caches, made from seeds; what COCO is needed for, in data of its names. The
commands that are not run are in ``not_run.py``, with a reason that is checked.
"""

import contextlib
import re
import shlex
import time
from pathlib import Path

import pytest
import yaml

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from tests.docs.not_run import NOT_RUN, config_of, reason, train_arguments, words_of
from tests.helpers.clone import Clones
from tests.helpers.pages import PAGES, find_blocks, read, split_commands

SHELL = ("sh", "bash")
# Not run: output of programs, parts of files.
OTHER = ("", "yaml", "bibtex")

# What each program leaves where its command says.
WRITTEN = {
    "browse_data.py": ["", ".png"],
    "report.py": [""],
    "export.py": [""],
    "predict.py": ["/results.json", "/images.json", "/pictures"],
    "convert_data.py": ["/train.json", "/val.json"],
}
WRITTEN_OF_VIDEOS = ["/videos/clip.mp4", "/videos/clip.results.json", "/videos/clip.frames.json"]
WRITTEN_TO_YOLO = ["/data.yaml", "/images/train", "/labels/val"]
WRITTEN_BY_TRAINING = ["config.yaml", "metrics.json", "curves.png", "model_final.pth"]
# Of the page on one's own data, which explains these.
WRITTEN_BY_EVALUATIONS = ["model_best.pth", "best.json", "inference/coco_instances_results.json"]


def find_steps():
    """(page, language, text) of every command and every block of Python, in order."""
    for page in PAGES:
        for block in find_blocks(read(page)):
            if block.language in SHELL:
                yield from ((page, "sh", command) for command in split_commands(block.text))
            elif block.language not in OTHER:
                yield page, block.language, block.text


# Of those that are run: what takes longest, and has tests of its own in the default suite.
SLOW = (
    r"--output model\.pt2|torch\.export\.load|REFERENCE_WORLD_SIZE|trainer\.train\(\)"
    r"|MODEL_EMA|output/averaged/model|MAX_EPOCHS|mask_rcnn_rsb_1x\.yaml|my_coco/train"
    r"|model\.xml|SOLVER\.ACCUMULATE_STEPS 2|output/many"
)
# The same of one page, where another page has a command of its kind that stays: the README a
# training and an evaluation, docs/deployment.md an export, docs/pretraining.md one that ends soon.
SLOW_OF_A_PAGE = {
    "MODEL_ZOO.md": r"--eval-only",
    "docs/own_data.md": (
        r"frcnn_rsb_sample/model\.onnx|clip\.mp4|output/published"
        r"|browse_data\.py --config-file"
    ),
    "docs/pretraining.md": r"resnet50_rsb_sample|MODEL\.WEIGHTS output/flowers/model_final\.pth",
}

STEPS = list(find_steps())


def parameter(page, language, text):
    slow = re.search(SLOW, text) or re.search(SLOW_OF_A_PAGE.get(page, "(?!)"), text)
    slow = slow and not (language == "sh" and reason(text))
    name = f"{page}-{' '.join(text.split())}"
    return pytest.param(
        *(page, language, text), id=name[:120], marks=[pytest.mark.slow] if slow else []
    )


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        yield Clones(tmp_path_factory.mktemp("clones"), stack)


@pytest.mark.parametrize("page, language, text", [parameter(*step) for step in STEPS])
def test_step(page, language, text, clones, monkeypatch):
    monkeypatch.chdir(clones.folder(page))
    if language == "sh" and reason(text):
        reason(text)(text)
        return
    assert language in ("sh", "python"), f"nobody has said what to do with {language}"
    started = time.time() - 1  # clocks of file systems are coarse
    done = clones.run(page, text if language == "sh" else f"python -c {shlex.quote(text)}")
    assert done.returncode == 0, done.stdout + done.stderr
    if language == "sh":
        for path in written_by(text):
            assert path.exists() and path.stat().st_mtime >= started, path
        assert written_by(text) or done.stdout.strip()


def written_by(command):
    """The files that a command is to write, in the working folder."""
    words = words_of(command)
    program = Path(words[1]).name
    if program == "convert_weights.py":
        return [Path(words[3])]
    if program == "train_net.py":
        args = train_arguments(command)
        names = WRITTEN_BY_EVALUATIONS if "TEST.EVAL_PERIOD" in words else []
        names = [] if args.eval_only else WRITTEN_BY_TRAINING + names
        return [Path(config_of(command).OUTPUT_DIR) / name for name in names]
    if program not in WRITTEN:
        return []
    suffixes = WRITTEN[program]
    if "clip.mp4" in words:
        suffixes = WRITTEN_OF_VIDEOS
    elif "yolo" in words:
        suffixes = WRITTEN_TO_YOLO
    run, output = (re.search(rf"--{o} (\S+)", command) for o in ("run", "output"))
    output = output[1] if output else f"{run[1]}/predictions"
    return [
        Path(output).with_suffix(suffix) if suffix == ".png" else Path(f"{output}{suffix}")
        for suffix in suffixes
    ]


YAML = [(page, b.text) for page in PAGES for b in find_blocks(read(page), "yaml")]


@pytest.mark.parametrize("page, text", YAML)
def test_yaml_is_a_config(page, text, clones, monkeypatch):
    """Every key is one, and a file that it names is there."""
    monkeypatch.chdir(clones.folder(page))
    Path("shown.yaml").write_text(text)
    assert load_config("shown.yaml", []).dump() != load_config("", []).dump()


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_another_language(page):
    blocks = [block.text for block in find_blocks(read(page)) if block.language in OTHER]
    programs = r"^(\$ |python|pip|make|torchrun|srun|bash|cd|tools/|source|wget|curl|git|docker)\b"
    assert [text for text in blocks if re.search(programs, text, re.M)] == []


def test_nothing_is_excused_that_no_page_has():
    excused = {reason(text) for _, language, text in STEPS if language == "sh"}
    assert excused >= set(NOT_RUN.values())


@pytest.mark.parametrize(
    "command",
    [
        "python train_net.py --config-file configs/frcnn_rsb_1x.yaml --num-gpus 8 SOLVER.NONE 1",
        "python train_net.py --config-file configs/none.yaml --num-gpus 8",
        "python train_net.py --config-file configs/frcnn_rsb_sample.yaml --num-gpus 8",
        "torchrun --nproc_per_node=8 --none train_net.py --config-file configs/frcnn_rsb_1x.yaml",
        "python tools/benchmark.py inference --none",
        "make none",
        "pip install none",
    ],
)
def test_an_excuse_is_checked(command, clones, monkeypatch):
    monkeypatch.chdir(clones.folder("README.md"))
    with pytest.raises((AssertionError, SystemExit, UserError)):
        reason(command)(command)


# ---- the page on one's own data ----

OWN_DATA = "docs/own_data.md"


def test_all_programs_are_gone_through():
    text = " ".join(text for page, _, text in STEPS if page == OWN_DATA)
    programs = [*WRITTEN, "train_net.py", "run_onnx.py"]
    assert all(program in text for program in programs)


def test_all_files_of_a_training_are_explained():
    names = [*WRITTEN_BY_TRAINING, *WRITTEN_BY_EVALUATIONS]
    assert [name for name in names if Path(name).name not in read(OWN_DATA)] == []


def test_the_training_of_the_page_keeps_what_the_page_says(clones):
    run = clones.folder(OWN_DATA) / "output" / "frcnn_rsb_sample"
    assert "val_total_loss" in (run / "metrics.json").read_text()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["DATASETS"]["CLASS_NAMES"] == ["circle", "square", "triangle", "star"]


def test_the_config_of_ones_own_data(clones, monkeypatch):
    monkeypatch.chdir(clones.folder(OWN_DATA))
    cfg = load_config("my.yaml", [])
    register_coco_json(cfg)  # which checks the files, and their classes against the model's
    assert cfg.DATASETS.TRAIN == ("my_train",) and cfg.DATASETS.TEST == ("my_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 11
    with pytest.raises(UserError, match="NUM_CLASSES is 11"):
        register_coco_json(cfg)


def test_the_keys_of_ones_own_data_can_stand_on_the_command_line():
    (words,) = re.findall(r'`DATASETS\.COCO_JSON "(.*?)"`', read(OWN_DATA))
    assert load_config("", ["DATASETS.COCO_JSON", words]).DATASETS.COCO_JSON == [
        ["my_train", "my/train.json", "my/images"]
    ]
