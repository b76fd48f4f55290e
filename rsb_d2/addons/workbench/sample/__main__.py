"""``python -m rsb_d2.addons.workbench.sample FOLDER``"""

import argparse
import sys
from typing import List

from ....errors import UserError
from . import make_sample_data


def main(args: List[str] | None = None) -> None:
    """Make sample data from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rsb_d2.addons.workbench.sample", description="Make COCO-format sample data."
    )
    parser.add_argument("folder", help="folder to make")
    parser.add_argument("--num-train", type=int, default=1600, help="training images")
    parser.add_argument("--num-val", type=int, default=200, help="validation images")
    parser.add_argument("--image-size", type=int, default=160, help="longer side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(args))
    try:
        make_sample_data(**options)
    except UserError as e:
        sys.exit(f"error: {e}")
    print(f"sample data is in {options['folder']}")


if __name__ == "__main__":
    main()
