"""Little data sets in the formats of other tools, made line by line, and what they become."""

import json

import numpy as np
from PIL import Image

from rsb_d2.addons.workbench.convert import convert


def image(path, size=(100, 80), orientation=None):
    """A grey image file; ``size`` is that of the stored pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.new("RGB", size, (90, 90, 90)).save(path, exif=exif)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo(folder, labels, names=("cat", "dog"), head="train: images"):
    """``labels``: rows of each image's file, by the image's name; ``None`` for no file."""
    for name, rows in labels.items():
        image(folder / "images" / f"{name}.png")
        if rows is not None:
            write(folder / "labels" / f"{name}.txt", rows)
    return write(folder / "data.yaml", f"{head}\nnames: {json.dumps(list(names))}\n")


OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc(path, objects, filename, size=(100, 80)):
    """``objects``: (name, difficult, xmin, ymin, xmax, ymax) of each."""
    text = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    text += "".join(OBJECT.format(*o) for o in objects)
    return write(path, f"<annotation><filename>{filename}</filename>{text}</annotation>")


def labelme(path, shapes, image_path, size=(100, 80), data=None):
    """``shapes``: (label, type, points, group) of each, or whole dicts."""
    shapes = [
        s
        if isinstance(s, dict)
        else dict(zip(("label", "shape_type", "points", "group_id"), s), flags={})
        for s in shapes
    ]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path}
    content |= {"imageData": data, "imageWidth": size[0], "imageHeight": size[1]}
    return write(path, json.dumps(content))


def converted(source, output, **options):
    """Convert, and return the content of each file that was written, by split; and the notes."""
    conversion = convert([str(source)], str(output), **options)
    files = {split: output / f"{split}.json" for split in conversion.data.splits}
    contents = {split: json.loads(file.read_text()) for split, file in files.items()}
    return contents, {what: n for what, n in conversion.data.notes.items() if n}


def objects_of(content):
    """(file name, class, box, iscrowd) of each annotation."""
    images = {record["id"]: record["file_name"] for record in content["images"]}
    names = {record["id"]: record["name"] for record in content["categories"]}
    return [
        (images[a["image_id"]], names[a["category_id"]], a["bbox"], a["iscrowd"])
        for a in content["annotations"]
    ]


def boxes_by_image(content):
    """Of each image, the (class, left, top, right, bottom), sorted."""
    boxes = {record["file_name"]: [] for record in content["images"]}
    for name, category, (x, y, w, h), _ in objects_of(content):
        boxes[name].append((category, *np.round([x, y, x + w, y + h], 2).tolist()))
    return {name: sorted(rows) for name, rows in boxes.items()}
