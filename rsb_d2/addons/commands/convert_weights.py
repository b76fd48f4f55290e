"""Convert weights between timm, torchvision, OpenMMLab, Detectron2 and rsb_d2.

rsb-d2 convert-weights timm://resnet50.a1_in1k r50_rsb.pth --to detectron2
    for Detectron2's stock build_resnet_fpn_backbone
rsb-d2 convert-weights output/model_final.pth r50_coco.safetensors --to timm
    for timm.create_model("resnet50", num_classes=0, checkpoint_path="r50_coco.safetensors")
rsb-d2 convert-weights output/resnet50_rsb_a3/model_final.pth r50.safetensors --to timm
    a pretrained model with its classifier, for timm.create_model("resnet50", checkpoint_path=...)
rsb-d2 convert-weights resnet50_rsb-a1.pth r50.pth --to detectron2
    a classification model of OpenMMLab or torchvision
rsb-d2 convert-weights zoo://frcnn_rsb_1x frcnn_rsb_1x.pth --to rsb_d2
    a complete detector of OpenMMLab, for the config of that name
"""

import argparse
import warnings
from os.path import expanduser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...checkpoint.convert import Conversion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", type=expanduser, help="a file in any of these formats, timm://NAME, or zoo://NAME"
    )
    parser.add_argument("output", type=expanduser, help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--to",
        required=True,
        choices=("rsb_d2", "detectron2", "timm"),
        help="naming scheme to write",
    )
    parser.add_argument(
        "--name", default="", help="timm's name of the architecture, unless it is a plain ResNet"
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    warnings.simplefilter("ignore")  # libraries warn about each other
    rsb_d2.register_all()
    from ...checkpoint.convert import convert_file

    conversion = convert_file(args.input, args.output, args.to, args.name)
    print(_summary(args, conversion))
    return 0


def _summary(args: argparse.Namespace, conversion: "Conversion") -> str:
    lines = [
        f"{args.input} ({conversion.format_name}) -> {args.output}: "
        f"{len(conversion.weights)} tensors"
        + (f" of {conversion.timm_name}" if conversion.timm_name else "")
    ]
    if conversion.dropped:
        lines.append(f"left out: {', '.join(conversion.dropped)}")
    lines += _usage(args.to, args.output, conversion.timm_name, conversion.num_classes)
    return "\n".join(lines)


def _usage(target: str, output: str, name: str, num_classes: int) -> list:
    if target == "rsb_d2":
        return [f"MODEL.WEIGHTS {output}"]
    if target == "timm":
        arguments = f'"{name}", num_classes={num_classes}, checkpoint_path="{output}"'
        return [f"timm.create_model({arguments})"]
    from ...modeling.spec import PLAIN_RESNETS

    shape = PLAIN_RESNETS[name]
    usage = [
        "The config to use it with; images as timm feeds them, RGB:",
        f"  MODEL.WEIGHTS: {output}",
        "  MODEL.BACKBONE.NAME: build_resnet_fpn_backbone",
        f"  MODEL.RESNETS: {{DEPTH: {shape.depth}, NUM_GROUPS: {shape.num_groups}, "
        f"WIDTH_PER_GROUP: {shape.width_per_group}, RES2_OUT_CHANNELS: "
        f"{shape.res2_out_channels}, STRIDE_IN_1X1: False}}",
        "  MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53]",
        "  MODEL.PIXEL_STD: [58.395, 57.12, 57.375]",
        "  INPUT.FORMAT: RGB",
    ]
    if output.endswith(".safetensors"):
        usage.append("Detectron2's own checkpointer reads .pth only; rsb_d2.Checkpointer, both.")
    return usage
