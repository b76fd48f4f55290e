"""COCO to COCO: everything that a file says stays, when it is copied, split and joined."""

import copy
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert import convert
from tests.helpers.data.label_files import image, write

MASK = np.zeros((80, 100), dtype=np.uint8, order="F")
MASK[20:40, 10:30] = 1
RLE = {"size": [80, 100], "counts": mask_util.encode(MASK)["counts"].decode()}
RUNS = {"size": [80, 100], "counts": [820, 20, 60, 20, 7080]}
PERSON = {
    "supercategory": "living",
    "id": 9,
    "name": "person",
    "keypoints": ["nose", "tail"],
    "skeleton": [[1, 2]],
    "color": [220, 20, 60],
}


def content(start=0, names="abcdef"):
    """A file with all that COCO's format has, and keys of other tools."""
    images = [
        {
            "license": 4,
            "file_name": f"{name}.png",
            "coco_url": f"http://images.cocodataset.org/{name}.png",
            "height": 80,
            "width": 100,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "",
            "id": start + 391895 - 7 * i,
            "tags": {"night": True, "gps": [1.5, None]},
        }
        for i, name in enumerate(names)
    ]
    shapes = [
        {"segmentation": [[10, 20, 30.123456789, 20, 30, 40, 10, 40]], "area": 777.7},
        {"segmentation": RLE, "iscrowd": 1, "area": 400},
        {"segmentation": RUNS, "keypoints": [12, 22, 2, 0, 0, 0], "num_keypoints": 1},
        {"caption": "a person", "attributes": {"occluded": False}, "track_id": 3, "score": 0.5},
        {"segmentation": [], "ignore": 0, "bbox": [-0.5, 20, 20, 20]},
        {"bbox": [10, 20, 20.4999999, 20]},
    ]
    annotations = [
        {
            "id": start + 900 - i,
            "image_id": images[(i * 5 + i // 6) % len(images)]["id"],
            "category_id": (9, 2)[i % 2],
            "bbox": [10, 20, 20, 20],
            **shapes[i % len(shapes)],
        }
        for i in range(4 * len(images))
    ]
    return {
        "info": {"description": "mine", "year": 2026, "version": "1.0"},
        "licenses": [{"url": "http://example.org", "id": 4, "name": "CC"}],
        "videos": [{"id": 1, "name": "clip"}],
        "images": images,
        "type": "instances",
        "annotations": annotations,
        "categories": [dict(PERSON), {"id": 2, "name": "cat"}, {"id": 5, "name": "never seen"}],
        "extra": None,
    }


def make(folder, **contents):
    """Write files and images; return the paths, train first."""
    for one in contents.values():
        for record in one["images"]:
            image(folder / "images" / record["file_name"])
    return [str(write(folder / f"{n}.json", json.dumps(c))) for n, c in contents.items()]


def convert_all(tmp_path, files, **options):
    output = tmp_path / "out"
    options = {"images": [str(tmp_path / "in" / "images")], **options}
    conversion = convert(files, str(output), **options)
    read = {
        split: json.loads((output / f"{split}.json").read_text())
        for split in conversion.data.splits
    }
    return read, {what: n for what, n in conversion.data.notes.items() if n}


def test_a_split_parts_images_and_changes_nothing(tmp_path):
    files = make(tmp_path / "in", train=content())
    contents, notes = convert_all(tmp_path, files, split=0.7, seed=1)
    assert notes == {} and {s: len(c["images"]) for s, c in contents.items()} == {
        "train": 4,
        "val": 2,
    }
    for key in ("images", "annotations"):
        both = [record for one in contents.values() for record in one.pop(key)]
        assert sorted(both, key=lambda r: r["id"]) == sorted(content()[key], key=lambda r: r["id"])
    others = {
        key: value for key, value in content().items() if key not in ("images", "annotations")
    }
    assert contents["train"] == contents["val"] == others


def test_only_duplicate_ids_of_two_files_change(tmp_path):
    other = content(names="uvwxyz")
    other["licenses"].append({"id": 5, "name": "other"})
    other["videos"][0]["id"] = 2
    other["images"][0]["id"] = 17
    for annotation in other["annotations"]:
        if annotation["image_id"] == 391895:
            annotation["image_id"] = 17
    before = copy.deepcopy(other)
    files = make(tmp_path / "in", train=content(), val=other)
    contents, notes = convert_all(tmp_path, files)
    assert contents == {"train": content(), "val": before} and notes == {}

    joined, notes = convert_all(
        tmp_path / "split", make(tmp_path / "split/in", train=content(), val=other), split=0.5
    )
    assert all([licence["id"] for licence in c["licenses"]] == [4, 5] for c in joined.values())
    assert all([video["id"] for video in c["videos"]] == [1, 2] for c in joined.values())
    images = {i["file_name"]: i for c in joined.values() for i in c["images"]}
    assert len(images) == 12 and images["u.png"]["id"] == 17
    for one in joined.values():
        assert len({i["id"] for i in one["images"]}) == len(one["images"]) == 6
        assert len({a["id"] for a in one["annotations"]}) == len(one["annotations"]) == 24
    assert all("as two files have the same" in what for what in notes)

    def of_images(contents):
        """The annotations of each image, without their ids."""
        found = {}
        for one in contents:
            names = {i["id"]: i["file_name"] for i in one["images"]}
            for annotation in one["annotations"]:
                rest = {k: v for k, v in annotation.items() if k not in ("id", "image_id")}
                found.setdefault(names[annotation["image_id"]], []).append(rest)
        return found

    assert of_images(joined.values()) == of_images([content(), before])


@pytest.mark.parametrize("key", ["licenses", "categories"])
def test_records_of_one_id_that_differ_stop_a_split(tmp_path, key):
    other = content(names="uvwxyz")
    other[key][0]["url"] = "other"
    files = make(tmp_path / "in", train=content(), val=other)
    with pytest.raises(UserError, match=f"different '{key}' of the id") as error:
        convert_all(tmp_path, files, split=0.5)
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "out").exists()
    assert convert_all(tmp_path, files)[0]["val"][key] == other[key]


def test_an_image_in_two_files_stops_a_split(tmp_path):
    files = make(tmp_path / "in", train=content(), val=content(names="fgh"))
    with pytest.raises(UserError, match="f.png is in .*train.json and in .*val.json"):
        convert_all(tmp_path, files, split=0.5)
    assert "images that are in two splits" in convert_all(tmp_path, files)[1]


def test_clip_changes_what_it_cuts_alone(tmp_path):
    before = content()
    before["annotations"][0] |= {"bbox": [90, 20, 30, 40], "segmentation": [], "track_id": 7}
    files = make(tmp_path / "in", train=before)
    with pytest.raises(UserError, match="write --clip"):
        convert_all(tmp_path, files)
    contents, notes = convert_all(tmp_path, files, clip=True)
    cut, *others = contents["train"]["annotations"]
    assert others == before["annotations"][1:]
    assert cut["bbox"] == [90, 20, 10, 40] and cut["area"] == 400 and cut["track_id"] == 7
    assert notes == {"objects cut at the edge of the image": 1}


def test_a_file_keeps_its_contents_except_for_unusable_annotations(tmp_path):
    before = content()
    before["annotations"][0]["bbox"] = [10, 20, 0, 20]
    before["annotations"][1]["image_id"] = 1
    for annotation in before["annotations"][2:8]:
        annotation.pop("area", None)
    before["annotations"][3]["ignore"] = 1
    before["annotations"][4]["id"] = 0
    files = make(tmp_path / "in", train=before)
    contents, notes = convert_all(tmp_path, files)
    assert notes == {"annotations that cannot be used left out": 2}
    # Equal boxes of an image with other keys both stay.
    assert contents == {"train": {**before, "annotations": before["annotations"][2:]}}
    assert list(contents["train"]) == list(before)
