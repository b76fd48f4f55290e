"""Arithmetic in a YAML file is evaluated; nothing else that a file brings along is."""

import pytest
import yaml
from detectron2 import model_zoo

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.config.stock.arithmetic import ArithmeticLoader, evaluate

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
def test_it_is_what_python_says(text):
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
def test_nothing_else_is_evaluated(text, tmp_path):
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
    # By this project's loader alone.
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(f"{TAG} ['1 + 1']")
    assert yaml.load(f"{TAG} ['1 + 1']", Loader=ArithmeticLoader) == 2
