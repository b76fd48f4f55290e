"""A predictor with the interface of Detectron2's ``DefaultPredictor``."""

from typing import Any, Dict

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from ...errors import UserError
from ...predictor import Predictor


class BGRPredictor:
    """Predictor that takes one BGR image, as ``DefaultPredictor`` does, and returns its result.

    ``input_format`` is BGR whatever the model's own is: programs that have RGB images, such as
    SAHI, read it to decide whether to convert them, and others assume BGR.

    Args:
        predictor (Predictor): of the model.
    """

    input_format = "BGR"

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self.model = predictor.model
        self.metadata = Metadata(name="rsb_d2", thing_classes=list(predictor.classes.names))

    @classmethod
    def from_config(cls, cfg: CfgNode, dtype: str = "float32") -> "BGRPredictor":
        """Load the model of a config, and optimize it for inference.

        Arguments and errors are those of :meth:`Predictor.from_config`.
        """
        return cls(Predictor.from_config(cfg, dtype))

    def __call__(self, image: np.ndarray) -> Dict[str, Any]:
        """Detect objects.

        Args:
            image (ndarray): uint8 of shape (H, W, 3), BGR, as from ``cv2.imread``.

        Returns:
            dict: ``instances``, on the CPU, in pixels of the image.

        Raises:
            UserError: for an array of another shape or type.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"an image of shape {image.shape} and type {image.dtype}; it must be uint8 of "
                "shape (height, width, 3), BGR"
            )
        if self._predictor.input_format == "RGB":
            image = image[:, :, ::-1]
        (instances,) = self._predictor([self._predictor.prepare(np.ascontiguousarray(image))])
        return {"instances": instances}
