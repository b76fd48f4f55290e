"""Sample data: pictures of shapes with boxes and masks, made on the machine in seconds.

    python -m rsb_d2.addons.workbench.sample FOLDER

writes COCO-format data to train and evaluate on, the same bytes from the same seed::

    FOLDER/train/000001.jpg ...
    FOLDER/val/000001.jpg ...
    FOLDER/annotations/train.json, val.json
    FOLDER/sample.json                        what it was made with
"""

from .draw import CLASS_NAMES
from .folder import make_sample_data
from .objects import make_sample_objects

__all__ = ["CLASS_NAMES", "make_sample_data", "make_sample_objects"]
