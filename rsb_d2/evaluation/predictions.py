"""Where the predictions of an evaluation are, and of which data set they are."""

import json
import os

from detectron2.config import CfgNode

from ..files import whole_file

# In a folder of predictions: which data set they are of.
_DATASET_FILE = "dataset.json"


def prediction_folder(cfg: CfgNode, dataset_name: str, kind: str = "inference") -> str:
    """Return the folder for the predictions on a data set.

    Args:
        cfg (CfgNode): its ``OUTPUT_DIR`` and ``DATASETS.TEST``.
        dataset_name (str): a registered data set.
        kind (str): the folder in ``OUTPUT_DIR``.

    Returns:
        str: ``OUTPUT_DIR/inference``, or where another data set is evaluated as well,
        ``OUTPUT_DIR/inference/NAME``.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, kind)
    if set(cfg.DATASETS.TEST) <= {dataset_name}:
        return folder
    # A name with slashes in it is still one folder.
    return os.path.join(folder, dataset_name.replace("%", "%25").replace("/", "%2F"))


def write_dataset_name(folder: str, dataset_name: str) -> None:
    """Record in a folder of predictions which data set they are of.

    Args:
        folder (str): is made where it is missing.
        dataset_name (str): a registered data set.

    Raises:
        UserError: if the file cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    with whole_file(os.path.join(folder, _DATASET_FILE)) as f:
        f.write((json.dumps({"dataset": dataset_name}) + "\n").encode())


def read_dataset_name(results_file: str) -> str:
    """Return which data set the predictions in a file are of.

    Args:
        results_file (str): a file in a folder of predictions.

    Returns:
        str: the name of the data set; ``""`` where the folder does not record it.
    """
    path = os.path.join(os.path.dirname(results_file), _DATASET_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            return str(json.load(f)["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
