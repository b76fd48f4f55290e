"""COCO-format content with everything in it that Detectron2 reads."""

import random

import numpy as np
import pycocotools.mask as mask_util

WIDTH, HEIGHT = 100, 80


def _rle(rng):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    top, left = rng.randrange(60), rng.randrange(70)
    mask[top : top + 15, left : left + 20] = 1
    rle = mask_util.encode(mask)
    if rng.random() < 0.5:
        return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    runs, last, length = [], 0, 0
    for value in mask.ravel(order="F").tolist():
        if value != last:
            runs.append(length)
            last, length = value, 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*runs, length]}


def make_content(seed=0, images=30, annotations=120):
    """Images and annotations in no order, with polygons, RLE of both kinds, crowds and keypoints.

    Category ids have gaps; some images have no annotation, or crowds only; whole numbers and
    fractions are mixed; there are keys that nobody reads.
    """
    rng = random.Random(seed)
    ids = rng.sample(range(1, 10**6), images)
    content = {
        "info": {"year": 2026},
        "images": [
            {
                "id": i,
                "file_name": f"{'deep/' * (i % 2)}{i} ä.jpg",
                "width": WIDTH if i % 3 else HEIGHT,
                "height": HEIGHT if i % 3 else WIDTH,
                "license": 1,
            }
            for i in ids
        ],
        "annotations": [],
        "categories": [{"id": i, "name": f"class {i}"} for i in (90, 7, 2, 11)],
    }
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    busy, only_crowds = ids[: images * 3 // 4], set(ids[:3])
    for number in rng.sample(range(1, 10**7), annotations):
        image = rng.choice(busy)
        x, y = rng.randrange(50), round(rng.uniform(0, 40), 2)
        w, h = round(rng.uniform(5, 25), 2), rng.randrange(5, 35)
        crowd = int(image in only_crowds or rng.random() < 0.1)
        annotation = {
            "id": number,
            "image_id": image,
            "category_id": rng.choice((90, 7, 2, 11)),
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": crowd,
            "note": {"by": "nobody"},
        }
        if sizes[image] == (HEIGHT, WIDTH) and (crowd or rng.random() < 0.2):
            annotation["segmentation"] = _rle(rng)
        else:
            annotation["segmentation"] = [
                [x, y, x + w, y, x + w, y + h, x, y + h],
                *([[x, y, x + 3.5, y, x, y + 4]] * rng.randrange(2)),
            ]
        if rng.random() < 0.5:
            annotation["keypoints"] = [rng.randrange(60), 7.25, rng.randrange(3)] * 4
            annotation["num_keypoints"] = 4
        content["annotations"].append(annotation)
    return content
