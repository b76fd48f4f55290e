"""python run_openvino.py model.xml (or .onnx) image.jpg: needs openvino, NumPy and Pillow."""

import json
import sys

import numpy as np
import openvino
from PIL import Image, ImageOps

model = openvino.Core().read_model(sys.argv[1])
about = {key: value.value for key, value in model.get_rt_info()["framework"].items()}
# By default OpenVINO uses bfloat16 if the processor supports it: faster, but less exact.
detector = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
if "input_height" in about:  # for one size: as large as it goes, the rest in one color
    size = int(about["input_width"]), int(about["input_height"])
    factor = min(size[0] / image.width, size[1] / image.height)
else:
    short, longest = int(about["resize_short_side"]), int(about["resize_long_side_max"])
    factor = min(short / min(image.size), longest / max(image.size))
resized = image.resize([int(side * factor + 0.5) for side in image.size], Image.BILINEAR)
fed = resized
if "input_height" in about:
    fed = Image.new("RGB", size, tuple(json.loads(about["pad_color"])))
    fed.paste(resized)
boxes, scores, classes = list(detector(np.asarray(fed)).values())[:3]
boxes = boxes * np.tile(np.divide(image.size, resized.size), 2)
for box, score, i in zip(boxes.round(1).tolist(), scores, classes):
    print(f"{json.loads(about['class_names'])[i]} {score:.3f} {box}")
