"""Upload a trained detector to the Hugging Face hub, with its config, class names and model card.

rsb-d2 push output/mine OWNER/NAME --license apache-2.0
    the best weights of a training, or its last ones if there are none
rsb-d2 predict --weights hf://OWNER/NAME photos
    anywhere else; hf://OWNER/NAME is also a value of MODEL.WEIGHTS

The token of `hf auth login` or HF_TOKEN is used. The exit status is 0, or 2 for a mistake.
"""

import argparse
from os.path import expanduser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=expanduser, metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument("name", metavar="OWNER/NAME", help="repository, created if needed")
    parser.add_argument(
        "--weights", type=expanduser, default="", metavar="FILE", help="other weights of the run"
    )
    parser.add_argument(
        "--license", default="unknown", metavar="ID", help="of the weights, such as apache-2.0"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument(
        "--revision", default="", metavar="BRANCH", help="branch to write to (main)"
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    rsb_d2.register_all()
    from ..hub import push

    private = True if args.private else None
    print(push(args.run, args.name, args.weights, args.license, private, args.revision))
    return 0
