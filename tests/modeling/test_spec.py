"""Each key under MODEL.RESNETS: carried over to timm, or refused in one line."""

import pytest
import timm
import torch
from detectron2.config import get_cfg

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.modeling.spec import PLAIN_RESNETS, backbone_spec, check_heads, resnets_keys

STAGES = ["res2", "res3", "res4", "res5"]


def make_cfg(*opts, fpn=True):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone" if fpn else "build_timm_backbone"
    if fpn:
        cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.merge_from_list(list(opts))
    return cfg


def r(**keys):
    return [x for k, v in keys.items() for x in (f"MODEL.RESNETS.{k}", v)]


def t(**keys):
    return [x for k, v in keys.items() for x in (f"MODEL.TIMM.{k}", v)]


@pytest.mark.parametrize("name", PLAIN_RESNETS)
def test_depth_groups_and_width_name_the_model(name):
    shape = PLAIN_RESNETS[name]
    keys = r(DEPTH=shape.depth, NUM_GROUPS=shape.num_groups, WIDTH_PER_GROUP=shape.width_per_group)
    assert backbone_spec(make_cfg(*keys)).name == name
    # As timm's own model has them, which the keys are read from.
    with torch.device("meta"):
        found = resnets_keys(name)
        model = timm.create_model(name)
    assert found["DEPTH"] == shape.depth
    assert found["NUM_GROUPS"] == shape.num_groups == model.layer1[0].conv2.groups
    assert found["WIDTH_PER_GROUP"] == shape.width_per_group
    assert (
        found["RES2_OUT_CHANNELS"] == shape.res2_out_channels == model.layer2[0].conv1.in_channels
    )
    assert found["STEM_OUT_CHANNELS"] == model.conv1.out_channels
    # The same keys twice, and Detectron2's defaults with a name.
    twice = r(RES2_OUT_CHANNELS=shape.res2_out_channels, STEM_OUT_CHANNELS=64)
    assert backbone_spec(make_cfg(*keys, *twice, *t(NAME=name))).name == name
    assert backbone_spec(make_cfg(*t(NAME=name))).name == name


@pytest.mark.parametrize(
    "name, keys",
    [
        ("seresnet50", dict(DEPTH=50)),
        ("resnet101.a1_in1k", dict(DEPTH=101)),
        ("seresnext101_32x8d", dict(DEPTH=101, NUM_GROUPS=32, WIDTH_PER_GROUP=8)),
        ("resnetv2_101", dict(DEPTH=101)),
        ("resnet50_gn", dict(NORM="GN")),
        ("convnext_tiny", {}),
        ("efficientnet_b0", dict(RES2_OUT_CHANNELS=24)),
    ],
)
def test_a_name_and_keys_that_agree(name, keys):
    assert backbone_spec(make_cfg(*t(NAME=name), *r(**keys))).name == name


@pytest.mark.parametrize(
    "opts, line",
    [
        (r(DEPTH=77), "RESNETS.DEPTH: timm has no ResNet of DEPTH 77, .*{DEPTH: 50, .*TIMM.NAME"),
        (r(DEPTH=152, NUM_GROUPS=32, WIDTH_PER_GROUP=8), "no ResNet of DEPTH 152, NUM_GROUPS 32"),
        (
            r(DEPTH=101) + t(NAME="resnet50"),
            "NAME is resnet50, but MODEL.RESNETS.DEPTH is 101, .*50",
        ),
        (
            r(NUM_GROUPS=32) + t(NAME="resnet50"),
            "NAME is resnet50, but MODEL.RESNETS.NUM_GROUPS is",
        ),
        (r(WIDTH_PER_GROUP=4) + t(NAME="resnet50"), "but MODEL.RESNETS.WIDTH_PER_GROUP is 4, .*64"),
        (r(DEPTH=101) + t(NAME="convnext_tiny"), "RESNETS.DEPTH is 101, .*has no such value"),
        (r(RES2_OUT_CHANNELS=64), "RES2_OUT_CHANNELS: 64: timm's resnet50, .* has 256; write 256"),
        (r(DEPTH=18, RES2_OUT_CHANNELS=32), "RES2_OUT_CHANNELS: 32: .*resnet18, .*write 64"),
        (r(STEM_OUT_CHANNELS=32), "STEM_OUT_CHANNELS: 32: timm's resnet50.* has 64; write 64"),
        (r(NORM="GN"), "RESNETS.NORM: 'GN' cannot .*; write FrozenBN.*resnet50_gn.a1h_in1k"),
        (r(NORM="GN", DEPTH=101), "RESNETS.NORM: 'GN' cannot .*resnet101 .*BN or SyncBN$"),
        (r(NORM="nnSyncBN"), "RESNETS.NORM: 'nnSyncBN' cannot .*; write FrozenBN, BN or SyncBN$"),
        (r(NORM="SyncBN") + t(NORM="BN"), "TIMM.NORM is BN, but MODEL.RESNETS.NORM is SyncBN"),
        (t(NORM_EVAL="sometimes"), "TIMM.NORM_EVAL is 'sometimes'; write True or False"),
        (r(DEFORM_ON_PER_STAGE=[False, True, True, True]), "DEFORM_ON_PER_STAGE: .*no deformable"),
        (r(RES5_DILATION=2), "RES5_DILATION: 2 with build_timm_fpn_backbone: .*write 1, or"),
        (r(RES5_DILATION=4), "RES5_DILATION: 4: write 1, or 2"),
        (r(OUT_FEATURES=["res3", "res4"]), "FPN.IN_FEATURES: .*must be of MODEL.RESNETS.OUT_FEAT"),
        (r(OUT_FEATURES=["stem", "res5"]), "RESNETS.OUT_FEATURES: .*stem has stride 2"),
        (
            r(OUT_FEATURES=["res2", "res3"]) + t(OUT_FEATURES=["res3", "res4"]),
            "RESNETS.OUT_FEATURES: .*res2, which is not in MODEL.TIMM.OUT_FEATURES",
        ),
    ],
)
def test_unsupported_keys_are_a_one_line_error(opts, line):
    with pytest.raises(UserError, match=line) as error:
        backbone_spec(make_cfg(*opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "opts, line",
    [
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "RRPN: rotated boxes .*; write RPN"),
        (["MODEL.ROI_HEADS.NAME", "RROIHeads"], "RROIHeads: rotated boxes are not supported"),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"], "ROIAlignRotated: rotated boxes"),
        (["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "rotated boxes are not"),
    ],
)
def test_unsupported_heads_are_a_one_line_error(opts, line):
    cfg = make_cfg(*opts)
    assert backbone_spec(cfg) == backbone_spec(make_cfg())  # a builder answers for what it builds
    with pytest.raises(UserError, match=line) as error:
        check_heads(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "opts, norm, norm_eval",
    [
        ([], "FrozenBN", True),  # Detectron2's default
        (r(NORM="BN"), "BN", False),  # which learns its statistics in Detectron2
        (r(NORM="SyncBN"), "SyncBN", False),
        (r(NORM="SyncBN") + t(NORM_EVAL=True), "SyncBN", True),
        (r(NORM="SyncBN") + t(NAME="resnet50"), "SyncBN", False),
        (r(NORM="BN") + t(NORM="BN"), "BN", True),
        (t(NORM="SyncBN", NORM_EVAL=False), "SyncBN", False),
        (t(NAME="resnet50"), "BN", True),  # as this project's configs have it
        (t(NAME="resnet50", NORM="FrozenBN"), "FrozenBN", True),
    ],
)
def test_norm(opts, norm, norm_eval):
    spec = backbone_spec(make_cfg(*opts))
    assert (spec.norm, spec.norm_eval) == (norm, norm_eval)


@pytest.mark.parametrize(
    "opts, fpn, features",
    [
        ([], True, STAGES),
        (["MODEL.FPN.IN_FEATURES", STAGES[1:]], True, STAGES[1:]),
        (t(NAME="resnet50") + ["MODEL.FPN.IN_FEATURES", STAGES[1:]], True, STAGES),
        (r(OUT_FEATURES=STAGES), True, STAGES),
        ([], False, ["res4"]),
        (r(OUT_FEATURES=["res5"]), False, ["res5"]),
        (t(NAME="resnet50") + r(OUT_FEATURES=["res5"]), False, ["res5"]),
        (t(NAME="resnet50"), False, STAGES),
        (t(OUT_FEATURES=["stem", "res3"]), False, ["stem", "res3"]),
    ],
)
def test_features(opts, fpn, features):
    assert backbone_spec(make_cfg(*opts, fpn=fpn)).out_features == features


def test_dilation_and_freezing_are_carried_over():
    opts = [*r(RES5_DILATION=2, OUT_FEATURES=["res5"]), "MODEL.BACKBONE.FREEZE_AT", 3]
    spec = backbone_spec(make_cfg(*opts, fpn=False))
    assert (spec.res5_dilation, spec.freeze_at) == (2, 3)


# config.yaml of runs of version 0.1, in which both keys stand.
@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "resnet101", "convnext_tiny"])
def test_configs_of_earlier_runs_are_unchanged(name):
    before = t(NAME=name, NORM="BN", NORM_EVAL=True, FOLD_NORM=True, OUT_FEATURES=STAGES)
    before += r(**get_cfg().MODEL.RESNETS)
    assert backbone_spec(make_cfg(*before)) == (name, STAGES, "BN", True, 2, 1)
