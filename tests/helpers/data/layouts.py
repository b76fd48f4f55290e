"""Small data in the layouts of the data sets that Detectron2 knows, below one folder.

The folder is what Detectron2 calls DETECTRON2_DATASETS. Each image has a few rectangles, and sky
above, road below.
"""

import json
import os
from typing import List, NamedTuple

import numpy as np
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from PIL import Image

WIDTH, HEIGHT = 128, 96
# Of COCO, VOC and Cityscapes alike: name, COCO's id, colour.
CLASSES = [("person", 1, (220, 60, 60)), ("car", 3, (60, 60, 230)), ("bus", 6, (230, 220, 40))]
SKY, ROAD = 187, 149  # COCO's ids of stuff: sky-other-merged, road


class Box(NamedTuple):
    """An object: the index of its class, and its rectangle of whole pixels."""

    index: int
    x: int
    y: int
    w: int
    h: int

    @property
    def polygon(self) -> List[int]:
        x, y, w, h = self[1:]
        return [x, y, x + w, y, x + w, y + h, x, y + h]

    @property
    def pixels(self):
        return slice(self.y, self.y + self.h), slice(self.x, self.x + self.w)


def make_boxes(number: int, num_boxes: int = 3) -> List[Box]:
    """The objects of an image, which do not overlap, from the image's number."""
    rng = np.random.default_rng(number)
    left = WIDTH // num_boxes
    return [
        Box(
            (number + i) % len(CLASSES),
            left * i + int(rng.integers(2, 8)),
            int(rng.integers(4, 30)),
            *(int(v) for v in rng.integers((20, 30), (30, 56))),
        )
        for i in range(num_boxes)
    ]


def draw(boxes: List[Box]) -> Image.Image:
    image = np.full((HEIGHT, WIDTH, 3), 130, np.uint8)
    image[: HEIGHT // 2] = 180, 210, 240
    for box in boxes:
        image[box.pixels] = CLASSES[box.index][2]
    return Image.fromarray(image)


def _write(path: str, content) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if isinstance(content, Image.Image):
        content.save(path)
        return
    with open(path, "w") as f:
        f.write(content if isinstance(content, str) else json.dumps(content))


# ---- COCO: boxes, masks, keypoints, panoptic ----


def make_coco(root, num_images: int = 4) -> None:
    """``coco/{train,val}2017``, with instances, keypoints and panoptic annotations."""
    for split in ("train2017", "val2017"):
        images, annotations, people, panoptic = [], [], [], []
        for number in range(1, num_images + 1):
            boxes, name = make_boxes(number), f"{number:012}"
            _write(f"{root}/coco/{split}/{name}.jpg", draw(boxes))
            images.append(dict(id=number, file_name=f"{name}.jpg", width=WIDTH, height=HEIGHT))
            for box in boxes:
                annotation = dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=CLASSES[box.index][1],
                    bbox=list(box[1:]),
                    area=box.w * box.h,
                    iscrowd=0,
                    segmentation=[box.polygon],
                )
                annotations.append(annotation)
                if box.index == 0:
                    people.append({**annotation, "keypoints": _keypoints(box), "num_keypoints": 17})
            panoptic.append(_make_panoptic(root, split, number, name, boxes))
        things = [dict(id=c["id"], name=c["name"]) for c in COCO_CATEGORIES if c["isthing"]]
        folder, whole = f"{root}/coco/annotations", dict(images=images, info={}, licenses=[])
        _write(
            f"{folder}/instances_{split}.json",
            {**whole, "annotations": annotations, "categories": things},
        )
        person = [{**things[0], "keypoints": [str(i) for i in range(17)], "skeleton": []}]
        _write(
            f"{folder}/person_keypoints_{split}.json",
            {**whole, "annotations": people, "categories": person},
        )
        _write(
            f"{folder}/panoptic_{split}.json",
            {**whole, "annotations": panoptic, "categories": COCO_CATEGORIES},
        )


def _keypoints(box: Box) -> List[int]:
    """17 points on a grid in the box, all visible."""
    points = [
        (box.x + box.w * (1 + i % 4) / 5, box.y + box.h * (1 + i // 4) / 6) for i in range(17)
    ]
    return [v for x, y in points for v in (int(x), int(y), 2)]


def _make_panoptic(root, split, number, name, boxes) -> dict:
    """The picture of segments, and, as of prepare_panoptic_fpn.py, that of stuff."""
    stuff_ids = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]
    ids, labels = np.zeros((2, HEIGHT, WIDTH), np.int64)
    segments = []

    def add(pixels, category_id, is_stuff):
        segment_id = 1000 + 300 * len(segments)
        ids[pixels] = segment_id
        labels[pixels] = 1 + stuff_ids.index(category_id) if is_stuff else 0
        segments.append(dict(id=segment_id, category_id=category_id, iscrowd=0))

    add(slice(0, HEIGHT // 2), SKY, True)
    add(slice(HEIGHT // 2, HEIGHT), ROAD, True)
    for box in boxes:
        add(box.pixels, CLASSES[box.index][1], False)
    for segment in segments:
        ys, xs = np.nonzero(ids == segment["id"])
        w, h = int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
        segment.update(area=len(xs), bbox=[int(xs.min()), int(ys.min()), w, h])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
    _write(f"{root}/coco/panoptic_{split}/{name}.png", Image.fromarray(rgb))
    stuff = Image.fromarray(labels.astype(np.uint8))
    _write(f"{root}/coco/panoptic_stuff_{split}/{name}.png", stuff)
    return dict(image_id=number, file_name=f"{name}.png", segments_info=segments)


# ---- LVIS ----


def make_lvis(root, num_images: int = 4) -> None:
    """``lvis/lvis_v1_{train,val}.json`` on the images of :func:`make_coco`."""
    category_ids = [next(c["id"] for c in LVIS_CATEGORIES if c["name"] == n) for n in _OF_LVIS]
    make_coco(root, num_images)
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(1, num_images + 1):
            present = set()
            for box in make_boxes(number):
                present.add(category_ids[box.index])
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=category_ids[box.index],
                        bbox=list(box[1:]),
                        area=box.w * box.h,
                        segmentation=[box.polygon],
                    )
                )
            url = f"http://images.cocodataset.org/{split}2017/{number:012}.jpg"
            images.append(
                dict(
                    id=number,
                    coco_url=url,
                    width=WIDTH,
                    height=HEIGHT,
                    neg_category_ids=[i for i in (1, 2, 3) if i not in present],
                    not_exhaustive_category_ids=[],
                )
            )
        whole = dict(images=images, annotations=annotations, categories=LVIS_CATEGORIES)
        _write(f"{root}/lvis/lvis_v1_{split}.json", whole)


_OF_LVIS = ("person", "car_(automobile)", "bus_(vehicle)")


# ---- Pascal VOC ----


def make_voc(root, num_images: int = 4) -> None:
    """``VOC2007``, with the lists ``trainval`` and ``test``."""
    for split in ("trainval", "test"):
        names = [f"{number + 1000 * (split == 'test'):06}" for number in range(1, num_images + 1)]
        for number, name in enumerate(names, start=1):
            boxes = make_boxes(number)
            _write(f"{root}/VOC2007/JPEGImages/{name}.jpg", draw(boxes))
            _write(f"{root}/VOC2007/Annotations/{name}.xml", _voc_xml(name, boxes))
        _write(f"{root}/VOC2007/ImageSets/Main/{split}.txt", "\n".join(names) + "\n")


def _voc_xml(name: str, boxes: List[Box]) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[b.index][0]}</name><pose>Unspecified</pose>"
        "<truncated>0</truncated><difficult>0</difficult><bndbox>"
        # Pixels are counted from 1 and the last is within.
        f"<xmin>{b.x + 1}</xmin><ymin>{b.y + 1}</ymin>"
        f"<xmax>{b.x + b.w}</xmax><ymax>{b.y + b.h}</ymax></bndbox></object>"
        for b in boxes
    )
    return (
        f"<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename><size>"
        f"<width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        f"<segmented>0</segmented>{objects}</annotation>"
    )


# ---- Cityscapes ----


def make_cityscapes(root, num_images: int = 3, splits=("train", "val")) -> None:
    """``cityscapes``: the polygons as they come, and the pictures that its own scripts make."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    for split in splits:
        for number in range(1, num_images + 1):
            city = ("ulm", "bonn")[number % 2]
            name, boxes = f"{city}_{number:06}_000019", make_boxes(number)
            image = f"{root}/cityscapes/leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"
            _write(image, draw(boxes))
            truth = f"{root}/cityscapes/gtFine/{split}/{city}/{name}_gtFine_"
            right, half, bottom = WIDTH - 1, HEIGHT // 2, HEIGHT - 1
            objects = [
                dict(label="sky", polygon=[[0, 0], [right, 0], [right, half], [0, half]]),
                dict(
                    label="road", polygon=[[0, half], [right, half], [right, bottom], [0, bottom]]
                ),
            ]
            for box in boxes:
                # The polygon's last pixels are drawn, too.
                x, y, w, h = box.x, box.y, box.w - 1, box.h - 1
                corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
                objects.append(dict(label=CLASSES[box.index][0], polygon=corners))
            _write(f"{truth}polygons.json", dict(imgHeight=HEIGHT, imgWidth=WIDTH, objects=objects))
            json2labelImg(f"{truth}polygons.json", f"{truth}labelIds.png", "ids")
            json2labelImg(f"{truth}polygons.json", f"{truth}labelTrainIds.png", "trainIds")
            annotation = Annotation()
            annotation.fromJsonFile(f"{truth}polygons.json")
            ids = createInstanceImage(annotation, "ids")
            # As json2instanceImg does, with a Pillow that writes PNG of 32 bits.
            _write(f"{truth}instanceIds.png", Image.fromarray(np.asarray(ids, np.uint16)))


# ---- ADE20k ----


def make_ade20k(root, num_images: int = 4) -> None:
    """``ADEChallengeData2016`` as of Detectron2's prepare_ade20k_sem_seg.py."""
    folder = f"{root}/ADEChallengeData2016"
    index = {n: ADE20K_SEM_SEG_CATEGORIES.index(n) for n in ("sky", "road, route", "car", "bus")}
    of_class = [255, index["car"], index["bus"]]  # what is no class of it is ignored
    for split, start in (("training", "train"), ("validation", "val")):
        for number in range(1, num_images + 1):
            boxes, name = make_boxes(number), f"ADE_{start}_{number:08}"
            labels = np.full((HEIGHT, WIDTH), index["road, route"], np.uint8)
            labels[: HEIGHT // 2] = index["sky"]
            for box in boxes:
                labels[box.pixels] = of_class[box.index]
            _write(f"{folder}/images/{split}/{name}.jpg", draw(boxes))
            path = f"{folder}/annotations_detectron2/{split}/{name}.png"
            _write(path, Image.fromarray(labels))
