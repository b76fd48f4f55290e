"""Bad inputs to the tools, a row each: what they must say about it."""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.data.bad_input import HEIGHT, IMAGES, NAN, WIDTH, Case, edited, put, remove, text
from tests.helpers.runs.programs import check_line, only_error
from tests.helpers.weights.bad_weights import (
    save_cut,
    save_html,
    save_malicious,
    save_other_architecture,
)


def results(change):
    def make(data):
        records = [dict(image_id=1, category_id=3, bbox=[10, 12, 40, 30], score=0.9)]
        changed = change(records)
        text = changed if isinstance(changed, str) else json.dumps(changed or records)
        (data / "results.json").write_text(text)
        return ["--results", "results.json"]

    return make


FILES = ["--annotations", "train.json", "--images", "train"]
RUN = ["--run", "{run}"]


def words(*given, then=lambda data: []):
    """Arguments, and those that ``then`` gives when it has made something bad."""
    return lambda data: [*given, *(then(data) or [])]


def made(make, *given):
    return lambda data: (make(data), list(given))[1]


def bad_weights(write_, *given):
    return lambda data: (write_(data / "bad.pth"), list(given))[1]


BAD = ["--weights", "bad.pth", "--output", "out"]
TO = ["bad.pth", "out.pth", "--to", "rsb_d2"]
EXPORT = [*RUN, "--output", "out.onnx"]
TOOLS = {
    "predict": [
        Case("an image that is missing", words(*RUN, "no.jpg"), "there is no image or folder no"),
        Case("a folder without images", words(*RUN, "{run}"), "has no images in it"),
        Case("a pattern that matches nothing", words(*RUN, "*.tif"), r"no file matches \*.tif"),
        Case("a run that is none", words("--run", "train", "train"), "has no config.yaml"),
        Case("threshold 50", words(*RUN, "train", "--threshold", "50"), "between 0 and 1"),
        Case("batch 0", words(*RUN, "train", "--batch", "0"), "--batch is 0; it must be 1"),
        Case(
            "workers -1", words(*RUN, "train", "--workers", "-1"), "--workers is -1; it must be 0"
        ),
        Case("weights of zero bytes", bad_weights(Path.touch, *RUN, "train", *BAD), "is empty"),
        Case(
            "malicious weights",
            bad_weights(save_malicious, *RUN, "train", *BAD),
            "was not read: .*system, and reading that can run code",
        ),
        Case(
            "an output folder in a file",
            words(*RUN, "train", "--output", "val.json/x"),
            "cannot make the folder val.json/x.*: Not a directory",
        ),
    ],
    "browse_data": [
        Case("JSON cut short", made(text("{"), *FILES), "train.json: is not valid JSON"),
        Case("no image folder", made(remove("train"), *FILES), "there is no folder train"),
        Case("an image that is missing", made(remove("train/4.jpg"), *FILES), "are not in"),
        Case("duplicate ids", made(put("images", id=2), *FILES), "more than once"),
        Case(
            "no annotations",
            made(edited(lambda c: {**c, "annotations": []}), *FILES),
            "no usable annotation",
        ),
        Case("a page with another ending", words(*FILES, "--output", "x.pdf"), "must end in .html"),
    ],
    "report": [
        Case("results cut short", words(*FILES, then=results(lambda r: "[{")), "is not JSON"),
        Case(
            "results that are annotations",
            words(*FILES, "--results", "train.json"),
            "an annotation file is not a results file",
        ),
        Case("results missing", words(*FILES, "--results", "no.json"), "no such results file"),
        Case(
            "a score of NaN",
            words(*FILES, then=results(lambda r: r[0].update(score=NAN))),
            "position 0 has no 'score' that is a finite number",
        ),
        Case(
            "a score of 400 digits",
            words(*FILES, then=results(lambda r: r[0].update(score=10**400))),
            "no 'score'",
        ),
        Case(
            "an unknown image",
            words(*FILES, then=results(lambda r: r[0].update(image_id=9))),
            "results file of another data set",
        ),
        Case(
            "an unknown class",
            words(*FILES, then=results(lambda r: r[0].update(category_id=1))),
            "classes that .* does not have",
        ),
        Case(
            "a mask cut short",
            words(
                *FILES,
                then=results(
                    lambda r: r[0].update(segmentation=dict(size=[HEIGHT, WIDTH], counts="0P0"))
                ),
            ),
            "'counts' do not add up",
        ),
    ],
    "export": [
        Case("an ending that is none", words(*RUN, "--output", "out.pt"), "out.pt"),
        Case(
            "an image of zero bytes",
            lambda d: (d / "x.jpg").touch() or [*EXPORT, "--images", "x.jpg"],
            "--images: cannot read x.jpg: the file is empty",
        ),
        Case(
            "weights of zero bytes",
            bad_weights(Path.touch, *EXPORT, "--weights", "bad.pth"),
            "bad.pth is empty",
        ),
        Case("no config", words("--output", "out.onnx"), "name a config"),
    ],
    "convert_weights": [
        Case("of zero bytes", bad_weights(Path.touch, *TO), "is empty .0 bytes"),
        Case("of HTML", bad_weights(save_html, *TO), "is a web page .HTML"),
        Case("cut short", bad_weights(save_cut, *TO), "cut off or damaged"),
        Case("malicious", bad_weights(save_malicious, *TO), "was not read"),
        Case("of another architecture", bad_weights(save_other_architecture, *TO), "bad.pth"),
        Case("missing", words(*TO), "there is no file bad.pth"),
        Case(
            "an ending that is none",
            bad_weights(save_html, "bad.pth", "out.bin", "--to", "rsb_d2"),
            "must end in",
        ),
    ],
}


@pytest.mark.parametrize(
    "name, case", [pytest.param(n, c, id=f"{n}: {c}") for n, cases in TOOLS.items() for c in cases]
)
def test_mistakes_are_one_line(name, case, little_data, tool):
    status, out, errors = tool(name, *case.make(little_data))
    assert status == 2 and out == ""
    check_line(only_error(name, errors), case.says)
    assert not (little_data / "ran").exists() and not list(little_data.glob("out*"))


@contextmanager
def disk_that_is_full(size=2000):
    """No file of this process can grow beyond this size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = {
    "predict": [*RUN, "train/4.jpg", "--threshold", "0.3", "--output", "out"],
    "browse_data": [*FILES, "--output", "out.html"],
    "report": [*FILES, "--results", "results.json", "--output", "out.html"],
    "convert_weights": ["{run}/model_final.pth", "out.pth", "--to", "timm"],
    "export": [*RUN, "--images", "train/4.jpg", "--output", "out.onnx"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "export" else []) for n in FULL]
)
def test_tools_on_a_full_disk(name, little_data, tool):
    results(lambda records: None)(little_data)
    with disk_that_is_full():
        status, out, errors = tool(name, *FULL[name])
    assert status == 2
    check_line(only_error(name, errors), "cannot write .*out.*File too large")
    assert not [path for path in little_data.glob("out*") if path.is_file()]


def test_a_bad_image_among_good_ones(little_data, tool):
    (little_data / "train" / IMAGES[1]).write_bytes(b"")
    status, out, errors = tool("predict", *RUN, "train", "--output", "out")
    assert status == 1 and "3 images" in out and "1 skipped" in out
    assert any(f"skipped train/{IMAGES[1]}: the file is empty" in line for line in errors)
    status, out, errors = tool("browse_data", *FILES, "--output", "out.html")
    assert status == 0 and "error" not in "".join(errors)
