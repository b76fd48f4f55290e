"""The file ``dataset.json`` of a folder of predictions, which names their data set."""

import json
import os
from typing import Any, Collection, Dict, List

from ..files import whole_file

_DATASET_FILE = "dataset.json"


def write_dataset_name(folder: str, dataset_name: str, skipped: Collection[Any] = ()) -> None:
    """Write the name of the data set into a folder of predictions, which is created if missing.

    ``skipped`` are the ids of images that the evaluation leaves out.
    """
    os.makedirs(folder, exist_ok=True)
    content = {"dataset": dataset_name, **({"skipped": list(skipped)} if skipped else {})}
    with whole_file(os.path.join(folder, _DATASET_FILE)) as f:
        f.write((json.dumps(content) + "\n").encode())


def read_dataset_name(results_file: str) -> str:
    """Return the name of the data set of a file of predictions; ``""`` if it is not known."""
    return str(_read_dataset(results_file).get("dataset", ""))


def read_skipped(results_file: str) -> List[Any]:
    """Return the ids of the images that the evaluation of a file of predictions leaves out."""
    return list(_read_dataset(results_file).get("skipped", []))


def _read_dataset(results_file: str) -> Dict[str, Any]:
    path = os.path.join(os.path.dirname(results_file), _DATASET_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
