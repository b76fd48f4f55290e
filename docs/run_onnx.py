"""python run_onnx.py model.onnx image.jpg: needs onnxruntime, NumPy and Pillow, nothing else."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
short, longest = int(about["resize_short_side"]), int(about["resize_long_side_max"])
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
factor = min(short / min(image.size), longest / max(image.size))
resized = image.resize([int(side * factor + 0.5) for side in image.size], Image.BILINEAR)
boxes, scores, classes = session.run(None, {"image": np.asarray(resized)})[:3]
boxes = boxes * np.tile(np.divide(image.size, resized.size), 2)
for box, score, i in zip(boxes.round(1).tolist(), scores, classes):
    print(f"{json.loads(about['class_names'])[i]} {score:.3f} {box}")
