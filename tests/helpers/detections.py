"""Made-up detections for the sample data, and the data of pages about them."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util


def make_detections(json_file, *, with_masks, per_image=12, seed=0):
    """Return jittered objects and a few of nothing, as COCO results; the same for a seed."""
    rng = np.random.default_rng(seed)
    content = json.loads(open(json_file).read())
    categories = [c["id"] for c in content["categories"]]
    results = []
    for image in content["images"]:
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        size = np.array([image["width"], image["height"]])
        for _ in range(per_image):
            category = int(rng.choice(categories))
            low, extent = rng.uniform(0, size * 0.6), rng.uniform(8, size * 0.4)
            score = rng.uniform(0, 0.6)
            if objects and rng.random() < 0.75:
                target = objects[rng.integers(len(objects))]
                box, jitter = np.array(target["bbox"], float), rng.choice([0.03, 0.1, 0.3])
                low = box[:2] + rng.normal(0, jitter, 2) * box[2:]
                extent = box[2:] * np.exp(rng.normal(0, jitter, 2))
                score = rng.uniform(0.2, 1.0) * (1 - jitter)
                if rng.random() < 0.8:
                    category = target["category_id"]
            low = low.clip(0, size - 4)
            extent = np.minimum(extent, size - low).clip(2)
            result = dict(
                image_id=image["id"],
                category_id=category,
                bbox=[*map(float, low), *map(float, extent)],
                score=float(score),
            )
            if with_masks:
                result["segmentation"] = _ellipse(low, extent, image["height"], image["width"])
            results.append(result)
    return results


def _ellipse(low, extent, height, width):
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = low + extent * (0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    rle = mask_util.merge(mask_util.frPyObjects([points.ravel().tolist()], height, width))
    return dict(size=rle["size"], counts=rle["counts"].decode())


def read_data(path):
    """Return the data of an HTML page of the workbench."""
    text = Path(path).read_text()
    start = text.index('id="data">') + len('id="data">')
    end = text.index("</script>", start)
    assert "<" not in text[start:end]  # a browser would take it for a tag
    return json.loads(text[start:end])
