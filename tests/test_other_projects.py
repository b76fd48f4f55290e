"""This project in one process with others: names in Detectron2's registries, keys of a config."""

import itertools
import json
import logging
import os
import subprocess
import sys
import types

import pytest
from detectron2.config import get_cfg

from rsb_d2 import Trainer, UserError, add_rsb_config
from rsb_d2.modeling import build_timm_fpn_backbone
from tests.helpers.paths import ROOT

# Stand-ins for Detic (detic/config.py, detic/modeling/backbone/timm.py) and Mask2Former
# (mask2former/config.py), by their names and keys.
STAND_INS = """
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone


class DeticBackbone(Backbone):
    def output_shape(self):
        return {"layer3": ShapeSpec(channels=4, stride=2)}

    def forward(self, x):
        return {"layer3": x}


def register():
    def build_timm_backbone(cfg, input_shape):
        assert cfg.MODEL.TIMM.BASE_NAME == "resnet50"
        return DeticBackbone()

    BACKBONE_REGISTRY.register(build_timm_backbone)
    META_ARCH_REGISTRY.register(type("ImageClassifier", (), {"__module__": "others"}))


def add_detic_config(cfg):
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.MODEL.TIMM = CN({"BASE_NAME": "resnet50", "NORM": "FrozenBN", "FREEZE_AT": 0})


def add_maskformer2_config(cfg):
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0


def add_model_ema_configs(cfg):
    cfg.MODEL_EMA = CN({"ENABLED": False, "DECAY": 0.999, "DEVICE": ""})
"""
others = types.SimpleNamespace()
exec(STAND_INS, vars(others))
OTHERS = [others.add_detic_config, others.add_maskformer2_config, others.add_model_ema_configs]

# Both projects in one process, in the order that is given; prints what their configs build.
PROGRAM = (
    STAND_INS
    + """
import json, logging, sys
logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
if sys.argv[1] == "ours":
    import rsb_d2
register()
import rsb_d2
from rsb_d2.engine.tasks import get_task

def build(name, *opts):
    cfg = get_cfg()
    add_detic_config(cfg)
    rsb_d2.add_rsb_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", name, "MODEL.DEVICE", "cpu", *opts])
    rsb = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53],
           "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]
    cfg.merge_from_list(rsb)
    return type(build_backbone(cfg, ShapeSpec(channels=3))).__name__

ours = ["MODEL.TIMM.NAME", "resnet10t", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
fpn = ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
built = [
    build("build_timm_backbone"),
    build("rsb_d2.build_timm_backbone", *ours),
    build("rsb_d2.build_timm_fpn_backbone", *ours, *fpn),
]
cfg = get_cfg()
rsb_d2.add_rsb_config(cfg)
for name in ("ImageClassifier", "rsb_d2.ImageClassifier"):
    cfg.MODEL.META_ARCHITECTURE = name
    built += [META_ARCH_REGISTRY.get(name).__module__, type(get_task(cfg)).__name__]
print(json.dumps(built))
"""
)


@pytest.mark.parametrize("first", ["ours", pytest.param("theirs", marks=pytest.mark.slow)])
def test_two_projects_with_the_same_names(first):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, first]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [
        *("DeticBackbone", "TimmBackbone", "FPN"),
        *("others", "Task", "rsb_d2.pretraining.classifier", "ClassificationTask"),
    ]
    lines = [line for line in result.stderr.splitlines() if "another project (" in line]
    assert len(lines) == 2 and "rsb_d2.build_timm_backbone" in "".join(lines)


def flat(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, type(node)):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("order", list(itertools.permutations(OTHERS, 2)))
def test_keys_of_other_projects_are_kept(order, caplog):
    expected = get_cfg()
    for add in order:
        add(expected)
    cfg = expected.clone()
    with caplog.at_level(logging.WARNING):
        add_rsb_config(cfg)
    found = dict(flat(cfg))
    assert {key: found[key] for key, _ in flat(expected)} == dict(flat(expected))
    alone = get_cfg()
    add_rsb_config(alone)
    assert found.keys() == dict(flat(alone)).keys() | dict(flat(expected)).keys()
    lines = [r.getMessage() for r in caplog.records if "another project" in r.getMessage()]
    assert len(lines) == 1
    differ = {k for k, v in flat(alone) if v != found[k]}
    assert all((key in lines[0]) == (key in differ) for key in dict(flat(alone)))


def test_a_value_instead_of_a_config_node_is_an_error():
    cfg = get_cfg()
    cfg.INPUT.LSJ = True
    with pytest.raises(UserError, match="INPUT.LSJ is True.*ENABLED") as e:
        add_rsb_config(cfg)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "replace, build, key",
    [
        (others.add_detic_config, build_timm_fpn_backbone, "MODEL.TIMM.NAME"),
        (others.add_detic_config, lambda cfg, _: Trainer(cfg), "MODEL.TIMM.NAME"),
        (others.add_model_ema_configs, lambda cfg, _: Trainer(cfg), "MODEL_EMA.WARMUP"),
    ],
)
def test_a_node_that_another_project_has_replaced_is_an_error(replace, build, key):
    cfg = get_cfg()
    add_rsb_config(cfg)
    replace(cfg)
    with pytest.raises(UserError, match=f"{key} is not in the config.*add_rsb_config") as e:
        build(cfg, None)
    assert "\n" not in str(e.value)
    add_rsb_config(cfg)  # as the message says
    assert cfg.MODEL.TIMM.NAME == "" and cfg.MODEL_EMA.WARMUP is False
