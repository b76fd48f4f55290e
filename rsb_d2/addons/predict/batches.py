"""Prediction of batches of a table, as the engines of a cluster call it: Ray Data, Spark, Daft."""

import os
from typing import Any, Dict, List

import numpy as np
from detectron2.structures import Instances

from ...data.images import read_image
from ...errors import UserError, first
from ...predictor import Predictor, load_predict_config
from .pipeline import Loaded, detect, group_by_shape, reason_of

COLUMNS = ("path", "bytes", "image")


class BatchPredictor:
    """A detector as a function of batches: columns of images in, columns of detections out.

    It can be pickled, as it holds only its arguments: each process loads the model at its first
    call. With ``batch_size=1``, the detections of an image do not depend on the batch that the
    engine puts it in, and equal those of ``rsb-d2 predict``.

    Args:
        weights (str): as ``MODEL.WEIGHTS``: a file, ``zoo://NAME``, ``hf://OWNER/NAME``; or the
            ``OUTPUT_DIR`` of a training, for its best weights, or its last ones if there are none.
            Files must be where each process finds them.
        config (str or None): a YAML file, or a name in the model zoo; ``None`` for the config of
            the run, or of the name on the hub or in the zoo.
        column (str): the column of the images: ``"path"``, files or addresses; ``"bytes"``, the
            content of files; ``"image"``, arrays of RGB, uint8 (H, W, 3).
        threshold (float): minimum score of a detection, 0 ... 1.
        batch_size (int): number of images that the model computes at once. Those of a batch are
            padded to the same size, which changes scores in the third decimal.
        device (str): ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``""`` for the device of the config, or
            the CPU if there is no GPU.
        dtype (str): ``"float32"`` or ``"bfloat16"``.

    Raises:
        UserError: for another ``column``.
    """

    def __init__(
        self,
        weights: str,
        config: str | None = None,
        column: str = "path",
        threshold: float = 0.5,
        batch_size: int = 1,
        device: str = "",
        dtype: str = "float32",
    ):
        if column not in COLUMNS:
            raise UserError(f"BatchPredictor: column is {column!r}; write one of {first(COLUMNS)}")
        if batch_size < 1:
            raise UserError(f"BatchPredictor: batch_size is {batch_size}; it must be 1 or more")
        self._arguments = str(weights), str(config or ""), float(threshold), str(device), str(dtype)
        self._column = column
        self._batch_size = int(batch_size)
        self._predictor: Predictor | None = None

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_predictor": None}

    def __call__(self, batch: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Detect objects in a batch.

        Args:
            batch (dict[str, ndarray]): columns of equal length N.

        Returns:
            dict[str, ndarray]: the columns of ``batch`` except ``bytes`` and ``image``, and of
            length N: ``boxes``, lists of (x0, y0, x1, y1) in pixels; ``scores``, lists;
            ``classes``, lists of category ids as in the annotation file; ``masks``, lists of the
            ``counts`` of COCO's compressed RLE, of models with masks; ``keypoints``, lists of
            x, y, score of each, of models with keypoints; ``height`` and ``width`` of the image, in
            pixels, 0 if it cannot be read; ``error``, why it cannot be used, or ``""``.

        Raises:
            UserError: if the column of the images is missing, or the model cannot be loaded.
        """
        if self._column not in batch:
            raise UserError(
                f"BatchPredictor: the batch has no column {self._column!r}; it has "
                f"{first(batch) or 'none'}"
            )
        if self._predictor is None:
            self._predictor = self._load()
        loaded = [self._read(index, value) for index, value in enumerate(batch[self._column])]
        rows: List[Dict[str, Any]] = [self._row(error=entry.reason) for entry in loaded]
        for indices in self._groups(loaded):
            for entry, instances in detect(self._predictor, [loaded[index] for index in indices]):
                if instances is None:
                    rows[entry.index]["error"] = "there is too little memory for it"
                else:
                    rows[entry.index] = self._row(instances)
        kept = {k: np.asarray(v) for k, v in batch.items() if k not in ("bytes", "image")}
        columns = {k: _column([row[k] for row in rows], v) for k, v in self._row().items()}
        return {**kept, **columns}

    def _load(self) -> Predictor:
        weights, config, threshold, device, dtype = self._arguments
        run = weights if os.path.isdir(weights) else ""
        weights = "" if run else weights
        cfg = load_predict_config(config, weights, run, device=device, threshold=threshold)
        self._fields = [
            *("boxes", "scores", "classes"),
            *(["masks"] if cfg.MODEL.MASK_ON else []),
            *(["keypoints"] if cfg.MODEL.KEYPOINT_ON else []),
        ]
        return Predictor.from_config(cfg, dtype)

    def _read(self, index: int, value: Any) -> Loaded:
        input_format = self._predictor.input_format
        partial = self._predictor.preparation.partial
        try:
            if self._column == "path":
                image = read_image(os.fspath(value), input_format, partial=partial)
            elif self._column == "bytes":
                content = bytes(memoryview(value))
                image = read_image("", input_format, partial=partial, content=content)
            else:
                image = _check_image(value)
                image = image if input_format == "RGB" else image[:, :, ::-1]
            return Loaded(index, self._predictor.prepare(image), None)
        except Exception as e:  # bad files, and values of other types
            return Loaded(index, None, None, reason_of(e))

    def _groups(self, loaded: List[Loaded]) -> List[List[int]]:
        usable = [entry for entry in loaded if entry.prepared is not None]
        if self._batch_size == 1:
            return [[entry.index] for entry in usable]
        sizes = [(entry.index, *entry.prepared["image"].shape[1:]) for entry in usable]
        return group_by_shape(sizes, self._batch_size)

    def _row(self, instances: Instances | None = None, error: str = "") -> Dict[str, Any]:
        row: Dict[str, Any] = {name: [] for name in self._fields}
        row.update(height=0, width=0, error=error)
        if instances is None:
            return row
        row["height"], row["width"] = instances.image_size
        row["boxes"] = instances.pred_boxes.tensor.tolist()
        for result in self._predictor.to_coco(instances, 0):
            row["scores"].append(result["score"])
            row["classes"].append(result["category_id"])
            if "masks" in row:
                row["masks"].append(result["segmentation"]["counts"])
            if "keypoints" in row:
                row["keypoints"].append(result["keypoints"])
        return row


def _check_image(value: Any) -> np.ndarray:
    image = np.asarray(value)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"not RGB of uint8 (H, W, 3) but {image.dtype} {image.shape}")
    return image


def _column(values: List[Any], example: Any) -> np.ndarray:
    column = np.empty(len(values), dtype=np.int64 if isinstance(example, int) else object)
    column[:] = values  # np.array() would make a matrix of lists of equal length
    return column
