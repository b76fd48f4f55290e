"""VIA to COCO: each kind of file and shape, by numbers worked out by hand."""

import csv
import io
import json
import math

import pycocotools.mask as mask_util
import pytest

from rsb_d2 import UserError
from tests.helpers.data.label_files import converted, image, objects_of, write

RECT = {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 16}
TRIANGLE = {"name": "polygon", "all_points_x": [10, 30, 30], "all_points_y": [8, 8, 40]}
POINT = {"name": "point", "cx": 5, "cy": 6}
LINE = {"name": "polyline", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]}


def region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def annotations(regions, name="a.jpg", size=1234):
    """As "Export annotations (as json)" of VIA 2 writes them."""
    record = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
    return {f"{name}{size}": record}


def project(regions):
    """As "Save project" of VIA 2 writes it."""
    return {
        "_via_settings": {"ui": {}, "core": {"default_filepath": ""}, "project": {"name": "x"}},
        "_via_img_metadata": annotations(regions),
        "_via_attributes": {"region": {"label": {"type": "text"}}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": ["a.jpg1234"],
    }


def via_1(regions):
    """As VIA 1 writes it: regions by number, and the image in the file."""
    (record,) = annotations({str(i): r for i, r in enumerate(regions)}).values()
    return {"a.jpg1234": {"fileref": "", "base64_img_data": "", **record}}


def table(regions, begin="filename", size="file_size"):
    """As "Export annotations (as csv)" writes them, with an image without regions."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(
        [begin, size, "file_attributes", "region_count", "region_id", "region_shape_attributes"]
        + ["region_attributes"]
    )
    for i, one in enumerate(regions):
        cells = map(json.dumps, (one["shape_attributes"], one["region_attributes"]))
        writer.writerow(["a.jpg", 1234, "{}", len(regions), i, *cells])
    writer.writerow(["b.jpg", 1234, "{}", 0, 0, "{}", "{}"])
    return file.getvalue()


FILES = {
    "annotations": ("via.json", lambda regions: json.dumps(annotations(regions))),
    "project": ("via_project.json", lambda regions: json.dumps(project(regions), indent=1)),
    "VIA 1": ("via_region_data.json", lambda regions: json.dumps(via_1(regions))),
    "CSV": ("via_export_csv.csv", table),
    "CSV of VIA 1": ("via_region_data.csv", lambda r: "\ufeff" + table(r, "#filename")),
}


@pytest.mark.parametrize("of_folder", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_files(kind, of_folder, tmp_path):
    name, make = FILES[kind]
    image(tmp_path / "in" / "a.jpg"), image(tmp_path / "in" / "b.jpg")
    shapes = [RECT, TRIANGLE, POINT, LINE]
    file = write(tmp_path / "in" / name, make([region(s, label="cat") for s in shapes]))
    source = tmp_path / "in" if of_folder else file
    contents, notes = converted(source, tmp_path / "out")
    assert objects_of(contents["train"]) == [
        ("a.jpg", "cat", [10, 20, 30, 16], 0),
        ("a.jpg", "cat", [10, 8, 20, 32], 0),
    ]
    assert contents["train"]["annotations"][1]["area"] == 320
    assert notes.pop("points and lines left out") == 2
    b_is_listed = kind.startswith("CSV")
    assert len(contents["train"]["images"]) == 1 + b_is_listed
    assert notes == ({} if b_is_listed else {"images not taken (b.jpg)": 1})


@pytest.mark.parametrize(
    "shape, box, area",
    [
        ({"name": "circle", "cx": 50, "cy": 40, "r": 10.5}, [39.5, 29.5, 21, 21], 110.25),
        ({"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10}, [30, 30, 40, 20], 200),
        (
            {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10, "theta": math.pi / 2},
            [40, 20, 20, 40],
            200,
        ),
        (
            {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10, "theta": 0.5},
            [50 - 18.1947, 40 - 12.9983, 2 * 18.1947, 2 * 12.9983],
            200,
        ),
    ],
)
def test_circles_and_ellipses(tmp_path, shape, box, area):
    image(tmp_path / "in" / "a.jpg")
    file = write(tmp_path / "in" / "x.json", json.dumps(annotations([region(shape, label="cat")])))
    (found,) = converted(file, tmp_path / "out")[0]["train"]["annotations"]
    assert found["bbox"] == pytest.approx(box, abs=1e-3)
    # A regular polygon of 64 corners on the unit circle, stretched.
    assert found["area"] == pytest.approx(32 * area * math.sin(2 * math.pi / 64), abs=0.01)
    rle = mask_util.merge(mask_util.frPyObjects(found["segmentation"], 80, 100))
    assert mask_util.toBbox(rle) == pytest.approx(box, abs=1)


def test_the_first_radius_turns_clockwise(tmp_path):
    """In the image, where y points down."""
    shape = {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 5, "theta": 0.5}
    image(tmp_path / "in" / "a.jpg")
    file = write(tmp_path / "in" / "x.json", json.dumps(annotations([region(shape, label="cat")])))
    (found,) = converted(file, tmp_path / "out")[0]["train"]["annotations"]
    mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(found["segmentation"], 80, 100)))
    assert mask[40 + 6, 50 + 12] and not mask[40 - 6, 50 + 12]


CHOICES = {
    "the only one": ([{"what it is": "cat"}, {"what it is": "dog"}], {}, ["cat", "dog"]),
    "a clear name": ([{"Class": "cat", "id": "1"}, {"Class": "dog"}], {}, ["cat", "dog"]),
    "two of the same values": ([{"label": "cat", "name": "cat"}], {}, ["cat"]),
    "the only checked box": ([{"kind": {"cat": True, "dog": False}}], {}, ["cat"]),
    "named": ([{"label": "a", "name": "cat"}], {"attribute": "name"}, ["cat"]),
    "none, and one class": ([{}, {}], {"classes": ["balloon"]}, ["balloon"]),
    "an order": ([{"label": "cat"}], {"classes": ["dog", "cat"]}, ["dog", "cat"]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_attribute_of_the_class(case, tmp_path):
    attributes, options, names = CHOICES[case]
    image(tmp_path / "in" / "a.jpg")
    regions = [region({**RECT, "x": i}, **one) for i, one in enumerate(attributes)]
    file = write(tmp_path / "in" / "x.json", json.dumps(annotations(regions)))
    content = converted(file, tmp_path / "out", **options)[0]["train"]
    assert [category["name"] for category in content["categories"]] == names
    assert len(content["annotations"]) == len(attributes)


def test_splits_by_folders_and_images_elsewhere(tmp_path):
    for split in ("train", "val"):
        image(tmp_path / "in" / split / f"{split}.jpg")
        content = annotations([region(RECT, label="cat")], f"C:\\photos\\{split}.jpg")
        write(tmp_path / "in" / split / "via_region_data.json", json.dumps(content))
    contents, notes = converted(tmp_path / "in", tmp_path / "out")
    assert {s: objects_of(c)[0][0] for s, c in contents.items()} == {
        "train": "train/train.jpg",
        "val": "val/val.jpg",
    }
    image(tmp_path / "photos" / "a.jpg")
    content = annotations([region(RECT, label="cat")], "https://example.org/photos/a.jpg", -1)
    file = write(tmp_path / "via.json", json.dumps(content))
    contents, _ = converted(file, tmp_path / "1", images=[str(tmp_path / "photos")])
    assert objects_of(contents["train"])[0][0] == "a.jpg"


def test_splits_by_names_of_files(tmp_path):
    for split in ("train", "val"):
        image(tmp_path / "in" / "images" / f"{split}.jpg")
        content = annotations([region(RECT, label="cat")], f"{split}.jpg")
        write(tmp_path / "in" / f"via_{split}.json", json.dumps(content))
    contents, _ = converted(tmp_path / "in", tmp_path / "out")
    assert {s: [name for name, *_ in objects_of(c)] for s, c in contents.items()} == {
        "train": ["train.jpg"],
        "val": ["val.jpg"],
    }
    contents, _ = converted(tmp_path / "in" / "via_val.json", tmp_path / "1")
    assert [name for name, *_ in objects_of(contents["train"])] == ["val.jpg"]


def text(*regions, **options):
    return json.dumps(annotations([*regions], **options))


TWO = {"label": "cat", "name": "Tom"}


@pytest.mark.parametrize(
    "content, message, options",
    [
        (text(region(RECT, **TWO)), "have the attributes label, name; .* --attribute", {}),
        (text(region(RECT, a="x", b="y")), "have the attributes a, b; name the one", {}),
        (text(region(RECT, **TWO)), "have label, name, not kind", {"attribute": "kind"}),
        (text(region(RECT)), "have no attributes; name their only class with --classes", {}),
        (text(region(RECT, a="x"), region(RECT, a="")), "region 2: has no class: its .*'a'", {}),
        (text(region({"name": "star"}, a="x")), "region 1: is a shape called star", {}),
        (text(region({**RECT, "x": None}, a="x")), "has no number 'x'", {}),
        (text(region({**RECT, "x": 90}, a="x")), "reaches beyond the image", {}),
        (text(region({**LINE, "name": "polygon", "all_points_y": [1]}, a="x")), "same length", {}),
        (
            text(region({"name": "polygon", "all_points_x": [1], "all_points_y": [1]}, a="x")),
            "polygon of 1 points",
            {},
        ),
        (text(region(RECT, a="x"), name="gone.jpg"), "gone.jpg, which does not exist", {}),
        (text(region({**RECT, "x": 10**400}, a="x")), "has no number 'x'", {}),
        (text(region({**RECT, "x": math.nan}, a="x")), "not finite", {}),
        (text(name="a.jpg").replace('"a.jpg"', "5"), "regions that are not those of VIA", {}),
        (text({"shape_attributes": RECT}), "regions that are not those of VIA 1 or 2", {}),
        (text(region(POINT, a="x")), "x.json has 1 object, .* left out: 1 points and lines", {}),
        ('{"project": {"pid": "1"}, "metadata": {}}', "x.json is not a file of COCO, Lab", {}),
        (text(region(RECT, a="x")), "--classes names a class more than", {"classes": ["x", "x"]}),
    ],
)
def test_bad_files_stop_in_one_line(tmp_path, content, message, options):
    image(tmp_path / "in" / "a.jpg")
    file = write(tmp_path / "in" / "x.json", content)
    with pytest.raises(UserError, match=message) as error:
        converted(file, tmp_path / "out", **options)
    assert len(str(error.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_only_via_has_attributes(tmp_path):
    image(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "a.txt", "0 .5 .5 .2 .2")
    write(tmp_path / "in" / "classes.txt", "cat\n")
    with pytest.raises(UserError, match="--attribute: only regions of VIA"):
        converted(tmp_path / "in", tmp_path / "out", attribute="label")
