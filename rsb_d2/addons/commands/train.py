"""Train a detector, or pretrain a backbone, from a config.

rsb-d2 train --config-file frcnn_rsb_1x --num-gpus 8
rsb-d2 train --config-file my.yaml SOLVER.MAX_ITER 9000 OUTPUT_DIR output/mine
rsb-d2 train --config-file my.yaml --resume
    continues an interrupted run; torchrun --no-python -- rsb-d2 train ... starts it as well

The options are those of Detectron2's train_net.py.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser, is_evaluation: bool = False) -> None:
    # As detectron2.engine.default_argument_parser, whose import takes seconds.
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="a YAML file, or a name in the model zoo"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    if not is_evaluation:
        parser.add_argument("--eval-only", action="store_true", help="as rsb-d2 eval")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="per machine (1)")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="of this machine, from 0 (0)"
    )
    parser.add_argument(
        "--dist-url", default="", metavar="URL", help="tcp://HOST:PORT of the first machine"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config, last"
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    rsb_d2.register_all()
    from detectron2.engine import default_argument_parser

    from ...engine import program

    args.dist_url = args.dist_url or default_argument_parser().get_default("dist_url")
    program.run(_picklable(args))
    return 0


def _picklable(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments without the functions, for other processes."""
    return argparse.Namespace(**{k: v for k, v in vars(args).items() if not callable(v)})
