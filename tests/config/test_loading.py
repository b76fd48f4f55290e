"""Config files and overrides that cannot be read."""

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.config.loading import load_config
from tests.helpers.data.bad_input import Case, check_stop, config_file, opts

STOPS = [
    Case("rate a text", opts("SOLVER.BASE_LR", "fast"), "Type mismatch .*fast.* SOLVER.BASE_LR"),
    Case("batch 2.5", opts("SOLVER.IMS_PER_BATCH", "2.5"), "Type mismatch .*IMS_PER_BATCH"),
    Case("key misspelt", opts("SOLVER.BASE_LRR", "1.0"), "SOLVER.BASE_LRR; did you mean .*BASE_LR"),
    Case("config file missing", lambda d: ["--config-file", "no.yaml"], "there is no file no.yaml"),
    Case("config file that is none", config_file("{"), "bad.yaml: "),
    Case(
        "config file of bytes",
        lambda d: (
            (d / "bad.yaml").write_bytes(b"\xff\xfe\x00\x01") and ["--config-file", "bad.yaml"]
        ),
        "bad.yaml",
    ),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


def leaves(cfg, prefix=""):
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")


def default_config():
    cfg = get_cfg()
    add_rsb_config(cfg)
    return cfg


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def check_line(path, says, *words):
    with pytest.raises(UserError) as e:
        load_config(path, list(words))
    message = str(e.value)
    assert says in message
    assert "\n" not in message and len(message) < 500
    return message


# For which None means something, and stock Detectron2 trains.
NONE_MEANS_SOMETHING = {
    *("SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.BIAS_LR_FACTOR"),
    "MODEL.TIMM.NORM_EVAL",
}


def test_each_key_left_empty_is_named(tmp_path):
    """In a file, in its base, and of single values on the command line."""
    for key in leaves(default_config()):
        content = None
        for part in reversed(key.split(".")):
            content = {part: content}
        path = write(tmp_path / "empty.yaml", yaml.safe_dump({"VERSION": 2, **content}))
        heir = write(tmp_path / "heir.yaml", "_BASE_: empty.yaml\n")
        if key in NONE_MEANS_SOMETHING:
            load_config(path, [])
            continue
        for file in (path, heir):
            check_line(file, f"{key} ")
        check_line("", f"{key} ", key, "None")


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "the file is empty"),
        ("# SEED: 1\n\n", "the file is empty"),
        ("SOLVER:\nSEED: 1\n", "SOLVER is a group of keys"),
        ("SOLVER: [1]\n", "SOLVER is a group of keys"),
        ("MODEL:\n  RPN: 3\n", "MODEL.RPN is a group of keys"),
        ("SOLVER: {STEPS: {A: 1}}\n", "SOLVER.STEPS takes one value"),
        ("SOLVER: {STEPS: {}}\n", "SOLVER.STEPS takes one value"),
        ("DATASETS:\n  TRAIN:\n    -\n", "DATASETS.TRAIN has an empty item"),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[32, null]]}}\n", "ANCHOR_GENERATOR.SIZES"),
        ("3\n", "KEY: value"),
        ("a text\n", "KEY: value"),
        ("SEED: 1\n---\nSEED: 2\n", "single document"),
        ("SOLVER:\n\tMAX_ITER: 3\n", "(line 2)"),
        ("SEED: 1\nSEED: 2\n", "SEED is there twice; YAML takes the last one (line 2)"),
        ("MODEL:\n  MASK_ON: True\n  MASK_ON: False\n", "MASK_ON is there twice"),
        ("1: 2\n", "the key 1 is no text"),
        ("? [a]\n: 1\n", "is no text"),
        ("# café\nSEED: 1\n".encode("latin-1"), "no text in UTF-8"),
        ("SEED: 1\n".encode("utf-16"), "no text in UTF-8"),
        ("SEED: 1\n\0", "unacceptable character"),
        ("SEED: " + "[" * 3000, "recursion"),
        ("VERSION: two\n", "VERSION is 'two'; write 2"),
        ("VERSION: 99\n", "v99"),
        ("_BASE_: there_is_none.yaml\n", "there is no file"),
        ("_BASE_: ~/there_is_none.yaml\n", "there is no file"),
        ("_BASE_: this.yaml\n", "_BASE_ leads in a circle"),
        ("_BASE_: a.yaml\n", "_BASE_ leads in a circle"),
        ("_BASE_:\nSEED: 1\n", "_BASE_ is None"),
        ("_BASE_: ''\n", "_BASE_ is ''"),
        ("_BASE_: []\n", "_BASE_ is []"),
        ("_BASE_: 3\n", "_BASE_ is 3"),
        ("_BASE_: {a: b}\n", "_BASE_ is {'a': 'b'}"),
        ("_BASE_: [good.yaml, 3]\n", "_BASE_ is ['good.yaml', 3]"),
        ("_BASE_: .\n", "there is no file"),
        ("_BASE_: comments.yaml\nSEED: 1\n", "comments.yaml: the file is empty"),
        ("_BASE_: scalar.yaml\nSOLVER: {MAX_ITER: 3}\n", "scalar.yaml: SOLVER is a group of keys"),
    ],
)
def test_files_that_are_no_config(content, says, tmp_path):
    write(tmp_path / "good.yaml", "SEED: 1\n")
    write(tmp_path / "comments.yaml", "# SEED: 1\n")
    write(tmp_path / "scalar.yaml", "SOLVER: 3\n")
    write(tmp_path / "a.yaml", "_BASE_: b.yaml\n")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml\n")
    message = check_line(write(tmp_path / "this.yaml", content), says)
    assert str(tmp_path) in message or "empty item" in message or "SIZES" in message


@pytest.mark.parametrize("content", ["\ufeffSEED: 7\n", "SEED: 7\r\nMODEL:\r\n  MASK_ON: True\r\n"])
def test_files_of_other_editors(content, tmp_path):
    assert load_config(write(tmp_path / "a.yaml", content), []).SEED == 7


def test_bases_in_a_list_and_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    write(tmp_path / "first.yaml", "SEED: 1\nSOLVER: {MAX_ITER: 3}\n")
    write(tmp_path / "second.yaml", "SEED: 2\nMODEL: {MASK_ON: True}\n")
    both = write(tmp_path / "sub" / "both.yaml", "_BASE_: [~/first.yaml, ../second.yaml]\n")
    cfg = load_config(both, [])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.MODEL.MASK_ON) == (2, 3, True)
    # One file may be reached by two ways.
    again = write(tmp_path / "again.yaml", "_BASE_: [first.yaml, first.yaml]\n")
    assert load_config(again, []).SEED == 1


@pytest.mark.parametrize(
    "words, says",
    [
        (["SOLVER", "3"], "SOLVER is a group of keys"),
        (["MODEL.RPN", "{'NMS_THRESH': 0.5}"], "MODEL.RPN is a group of keys"),
        (["SEED.", "1"], "Non-existent config key: SEED."),
        (["SEED.X", "1"], "Non-existent config key: SEED.X"),
        (["_BASE_", "a.yaml"], "_BASE_"),
        (["DATASETS.TRAIN", "(None,)"], "DATASETS.TRAIN has an empty item"),
    ],
)
def test_words_that_are_no_keys(words, says):
    check_line("", says, *words)


def test_a_folder_is_no_config(tmp_path):
    check_line(str(tmp_path), "is a folder; name a file")
