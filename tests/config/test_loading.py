"""Config files and overrides, and those that cannot be read."""

import pytest
import yaml
from detectron2 import model_zoo

from rsb_d2 import UserError
from rsb_d2.config.loading import _Loader, evaluate, load_config


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


# None has a meaning, and stock Detectron2 trains with it.
MAY_BE_EMPTY = ("SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.BIAS_LR_FACTOR", "MODEL.TIMM.NORM_EVAL")


@pytest.mark.parametrize(
    "key",
    [
        *("SEED", "SOLVER.BASE_LR", "SOLVER.STEPS", "MODEL.MASK_ON", "MODEL.TIMM.NAME"),
        *("MODEL.RPN", "MODEL.ANCHOR_GENERATOR.SIZES", "DATASETS.COCO_JSON", *MAY_BE_EMPTY),
    ],
)
def test_an_empty_key_is_named(key, tmp_path):
    """In a file, in its base, and on the command line."""
    content = None
    for part in reversed(key.split(".")):
        content = {part: content}
    path = write(tmp_path / "empty.yaml", yaml.safe_dump({"VERSION": 2, **content}))
    heir = write(tmp_path / "heir.yaml", "_BASE_: empty.yaml\n")
    if key in MAY_BE_EMPTY:
        load_config(path, [])
        return
    for file in (path, heir):
        check_line(file, f"{key} ")
    check_line("", f"{key} ", key, "None")


@pytest.mark.parametrize(
    "content, says",
    [
        ("# SEED: 1\n\n", "the file is empty"),
        ("SOLVER:\nSEED: 1\n", "SOLVER is a group of keys"),
        ("MODEL:\n  RPN: 3\n", "MODEL.RPN is a group of keys"),
        ("SOLVER: {STEPS: {A: 1}}\n", "SOLVER.STEPS takes one value"),
        ("INPUT: {MIN_SIZE_TRAIN: (240,)}\n", "MIN_SIZE_TRAIN: a comma ends the value"),
        ("SOLVER: {STEPS: (1, 2), SEED: 3}\n", "SOLVER.STEPS: a comma ends the value"),
        ("DATASETS:\n  TRAIN:\n    -\n", "DATASETS.TRAIN has an empty item"),
        ("3\n", "KEY: value"),
        ("SEED: 1\n---\nSEED: 2\n", "single document"),
        ("SOLVER:\n\tMAX_ITER: 3\n", "(line 2)"),
        ("SEED: 1\nSEED: 2\n", "SEED is written twice; YAML uses the last one (line 2)"),
        ("1: 2\n", "the key 1 is not text"),
        ("? [a]\n: 1\n", "is not text"),
        ("# café\nSEED: 1\n".encode("latin-1"), "not text in UTF-8"),
        ("SEED: 1\n".encode("utf-16"), "not text in UTF-8"),
        ("SEED: 1\n\0", "unacceptable character"),
        ("SEED: " + "[" * 3000, "recursion"),
        ("VERSION: two\n", "VERSION is 'two'; write 2"),
        ("VERSION: 99\n", "v99"),
        ("_BASE_: there_is_none.yaml\n", "there is no file"),
        ("_BASE_: ~/there_is_none.yaml\n", "there is no file"),
        ("_BASE_: this.yaml\n", "_BASE_ forms a cycle"),
        ("_BASE_: a.yaml\n", "_BASE_ forms a cycle"),
        ("_BASE_:\nSEED: 1\n", "_BASE_ is None"),
        ("_BASE_: []\n", "_BASE_ is []"),
        ("_BASE_: {a: b}\n", "_BASE_ is {'a': 'b'}"),
        ("_BASE_: [good.yaml, 3]\n", "_BASE_ is ['good.yaml', 3]"),
        ("_BASE_: .\n", "there is no file"),
        ("_BASE_: comments.yaml\nSEED: 1\n", "comments.yaml: the file is empty"),
        ("_BASE_: scalar.yaml\nSOLVER: {MAX_ITER: 3}\n", "scalar.yaml: SOLVER is a group of keys"),
    ],
)
def test_files_that_are_not_configs(content, says, tmp_path):
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
    # A file may be a base twice.
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
def test_words_that_are_not_keys(words, says):
    check_line("", says, *words)


def test_a_folder_is_not_a_config(tmp_path):
    check_line(str(tmp_path), "is a folder; name a file")


# ---- arithmetic, as in Detectron2's Base-RetinaNet.yaml ----

TAG = "!!python/object/apply:eval"


@pytest.mark.parametrize(
    "text",
    [
        "1 + 2 * 3 - 4 / 5",
        "-2 ** -3",
        "[1.5, (2, [3])]",
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",
        "[[x * y for y in (1, 2)] for x in [3, 4]]",
    ],
)
def test_arithmetic_equals_pythons(text):
    assert evaluate(text) == eval(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "open('x')",
        "(1).real",
        "x",
        "'a' * 9",
        "[1] * 10",
        "9 ** 9 ** 9",
        "[x for x in [1] if x]",
        "lambda: 0",
        "True",
        "1 if 2 else 3",
    ],
)
def test_only_arithmetic_is_evaluated(text, tmp_path):
    with pytest.raises(ValueError):
        evaluate(text)
    path = tmp_path / "theirs.yaml"
    path.write_text(f"SEED: {TAG} [{text!r}]\n")
    with pytest.raises(UserError, match="only arithmetic is evaluated.*; write the numbers") as e:
        load_config(str(path), [])
    assert "\n" not in str(e.value)


def test_the_anchors_of_the_zoo_are_detectron2s_own():
    name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    cfg = load_config(model_zoo.get_config_file(name), [])
    assert cfg.MODEL.ANCHOR_GENERATOR == model_zoo.get_config(name).MODEL.ANCHOR_GENERATOR
    # Only by this project's loader.
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(f"{TAG} ['1 + 1']")
    assert yaml.load(f"{TAG} ['1 + 1']", Loader=_Loader) == 2
