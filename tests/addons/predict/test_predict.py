"""tools/predict.py: from a run or weights to pictures, a COCO results file and a table."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image
from pycocotools.coco import COCO

from rsb_d2 import UserError
from rsb_d2.addons.predict.files import find_images, find_inputs
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.predictor import Predictor, load_predict_config
from tests.helpers import warm_python
from tests.helpers.clips import make_clip
from tests.helpers.paths import ROOT
from tests.helpers.seeded_run import CLASSES, IDS, make_seeded_config, make_seeded_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    make_sample_data(str(folder / "sample"), num_train=1, num_val=4)
    make_seeded_run(folder / "run", "faster")
    make_seeded_run(folder / "mask_run", "mask")
    return folder


@pytest.fixture
def predict(folder, monkeypatch, capsys):
    """A function that runs the program in ``folder``: exit status, stdout, stderr."""
    spec = importlib.util.spec_from_file_location("predict", ROOT / "tools" / "predict.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        status = program.main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def read_results(output):
    return json.loads((output / "results.json").read_text())


def test_a_run_and_a_folder(folder, predict, device):
    words = ("--run", "run", "sample/val", "--threshold", "0.3", "--device", device)
    status, out, err = predict(*words)
    assert status == 0
    output = folder / "run" / "predictions"
    pictures = sorted((output / "pictures").iterdir())
    assert [p.name for p in pictures] == [f"00000{i}.jpg" for i in (1, 2, 3, 4)]
    picture, image = (Image.open(p) for p in (pictures[0], folder / "sample/val/000001.jpg"))
    plain = np.asarray(image.resize(picture.size), dtype=float)
    assert (np.abs(np.asarray(picture) - plain) > 60).mean() > 0.01  # something is drawn
    # pycocotools reads the two files.
    truth, results = COCO(str(output / "images.json")), read_results(output)
    loaded = truth.loadRes(str(output / "results.json"))
    names = {c["id"]: c["name"] for c in truth.loadCats(truth.getCatIds())}
    assert names == dict(zip(IDS, CLASSES))
    files = [i["file_name"] for i in truth.loadImgs([1, 4])]
    assert files == ["sample/val/000001.jpg", "sample/val/000004.jpg"]
    assert len(loaded.getAnnIds()) == len(results) >= 10
    # The table and the progress.
    lines = out.splitlines()
    assert lines[1].startswith("sample/val/000001.jpg") and any(n in lines[1] for n in CLASSES)
    assert f"4 images, {len(results)} objects: " in out and "4/4" in err
    # The results are those of Detectron2's evaluation.
    cfg = load_predict_config(run=str(folder / "run"), threshold=0.3, device=device)
    predictor = Predictor.from_config(cfg)
    record = {"file_name": str(folder / "sample/val/000002.jpg"), "image_id": 2}
    with torch.no_grad():
        detections = predictor.model([DatasetMapper(cfg, is_train=False)(record)])
    expected = predictor.to_coco(detections[0]["instances"].to("cpu"), 2)
    assert [r for r in results if r["image_id"] == 2] == expected and len(expected) >= 3
    assert all(0.3 <= r["score"] <= 1 for r in results)


def test_masks_batches_and_bfloat16(folder, predict, device):
    mask = ("--run", "mask_run", "--threshold", "0.9", "--device", device)
    status, *_ = predict(*mask, "sample/val", "--output", "by_1")
    status_3, *_ = predict(*mask, "sample/val", "--output", "by_3", "--batch", "3")
    # A small image, because bfloat16 is slow on CPUs that do not support it.
    one = ("sample/val/000001.jpg", "--opts", "INPUT.MIN_SIZE_TEST", "48")
    status_16, *_ = predict(*mask, "--output", "b16", "--dtype", "bfloat16", *one)
    status_32, *_ = predict(*mask, "--output", "b32", *one)
    assert status == status_3 == status_16 == status_32 == 0
    by_1, by_3, b16, b32 = (read_results(folder / n) for n in ("by_1", "by_3", "b16", "b32"))
    assert len(by_1) >= 5 and all(len(r["segmentation"]["counts"]) > 0 for r in by_1)
    assert {r["image_id"] for r in by_3} == {r["image_id"] for r in by_1}
    assert len(by_3) == pytest.approx(len(by_1), rel=0.3)
    assert len(b16) == pytest.approx(len(b32), rel=0.3) and b16 != b32


def test_inputs_of_all_kinds(folder, tmp_path):
    """Each unusable input is one line, all others are predicted, and decoders print nothing.

    FFmpeg reads its log level once per process, so this needs a process of its own.
    """
    top, far = tmp_path / "top", tmp_path / "far"
    first, second = (folder / "sample" / "val" / f"00000{i}.jpg" for i in (1, 2))
    image = first.read_bytes()
    good = ["a.jpg", "b.JPG", "c.mpo", ".hidden.jpg", "deep/d.Jpeg", os.fsdecode(b"caf\xe9.jpg")]
    for name in [*good, "e.HEIC", "f.heic", "notes.txt", "without", ".git/g.jpg"]:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(image)
    Image.open(first).save(top / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(first).transpose(Image.Transpose.ROTATE_90)
    turned.save(top / "turned.png", exif=exif)
    Image.new("RGB", (3000, 10)).save(top / "long.png")  # too long for JPEG when enlarged
    good += ["upright.png", "turned.png", "long.png", "linked/h.jpg"]
    far.mkdir()
    (far / "h.jpg").write_bytes(image)
    (far / "back").symlink_to(top)
    (top / "linked").symlink_to(far)
    clip = make_clip(top / "good.mp4", num_frames=3).read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.png": b"no image",
        "cut.jpg": image[: len(image) // 2],
        "cut.mp4": clip[:3000],
        "._good.mp4": b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(4000),
        "text.mts": b"export const a = 1;\n" * 50,
        "empty.MOV": b"",
        os.fsdecode(b"clip\xe9.mp4"): clip,
    }
    for name, content in bad.items():
        (top / name).write_bytes(content)
    Image.new("RGB", (5000, 1)).save(top / "thread.png")  # no row remains after resizing
    (top / "gone.mkv").symlink_to("nowhere")
    make_clip(top / "frameless.mp4", num_frames=0)
    with tarfile.open(tmp_path / "good.TAR", "w") as tar:
        tar.add(first, "../../up.jpg")
        tar.add(second, "deep/b.jpg")
        tar.add(folder / "sample" / "annotations" / "val.json", "val.json")
    (tmp_path / "bad.tar").write_bytes(b"not a tar file" * 100)
    words = ["--run", "run", "--output", tmp_path / "out", top, tmp_path / "good.TAR"]
    result = subprocess.run(
        [warm_python.path(), ROOT / "tools" / "predict.py", *words, tmp_path / "bad.tar"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    # All that the program prints to stderr, besides the progress of images and videos.
    lines = [line.rpartition("\r")[2] for line in result.stderr.splitlines()]
    skipped = [line for line in lines if "skipped" in line]
    bad_names = [*bad, "thread.png", "gone.mkv", "frameless.mp4"]
    printed = {name.encode("utf-8", "backslashreplace").decode() for name in bad_names}
    paths = {line.partition("skipped ")[2].split(": ")[0] for line in skipped}
    assert paths == {f"{top}/{name}" for name in printed} | {str(tmp_path / "bad.tar")}
    others = [x for x in lines if x not in skipped and "image" not in x and "frame" not in x]
    assert not any(map(str.strip, others))
    for name, reason in (
        ("empty.MOV", "the file is empty"),
        ("gone.mkv", "No such file"),
        ("clip\\udce9.mp4", "is not UTF-8"),
        ("bad.tar", "is not an uncompressed tar file"),
    ):
        assert any(f"{name}: " in line and reason in line for line in skipped), name
    # The others.
    out = result.stdout
    assert f"{len(good) + 2} images, " in out and "4 skipped" in out
    assert f"{top / 'good.mp4'}: 3 frames" in out and "caf\\udce9.jpg" in out
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    ids = {i["file_name"]: i["id"] for i in images}
    assert sorted(ids)[-len(good) :] == sorted(str(top / name) for name in good)
    pictures = tmp_path / "out" / "pictures"
    assert len(list(pictures.rglob("*.jpg"))) == len(ids) == len(good) + 2
    assert (pictures / "up.jpg").is_file() and Image.open(pictures / "long.jpg").width == 65_500
    upright, turned = (
        [{**r, "image_id": 0} for r in read_results(tmp_path / "out") if r["image_id"] == i]
        for i in (ids[str(top / "upright.png")], ids[str(top / "turned.png")])
    )
    assert upright == turned != []
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {top}: left out 2 .heic (e.HEIC, f.heic), 2 folders (.git/, linked/back/), "
        "1 .txt (notes.txt), 1 without an ending (without)",
        f"note: {tmp_path / 'good.TAR'}: left out 1 .json (val.json)",
    ]


def test_a_config_file_or_a_zoo_name(folder, predict):
    (folder / "mine.yaml").write_text(make_seeded_config("faster").dump())
    words = ("sample/val/000001.jpg", "--weights", "run/model_final.pth", "--output", "none")
    status, out, _ = predict(*words, "--config-file", "mine.yaml", "--threshold", "1")
    assert status == 0 and "1 image, 0 objects" in out and read_results(folder / "none") == []
    assert (folder / "none" / "pictures" / "000001.jpg").is_file()
    assert load_predict_config(weights="zoo://frcnn_rsb_1x").MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert "name a config with --config-file" in predict(*words)[2]


RUN = ["--run", "run", "sample/val"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--run", "nowhere", "sample/val"], "--run: there is no folder nowhere"),
        (["--run", "sample", "sample/val"], "sample has no config.yaml"),
        (["--run", "run", "nothing.jpg"], "there is no image or folder nothing.jpg"),
        (["--run", "run", "*.gif"], "no file matches *.gif"),
        (["--run", "run", "sample/annotations"], "sample/annotations has no images in it"),
        ([*RUN, "--threshold", "50"], "--threshold is 50.0; a score is"),
        ([*RUN, "--batch", "0"], "--batch is 0"),
        ([*RUN, "--every", "0"], "--every is 0; it must be 1 or more"),
        ([*RUN, "--workers", "-1"], "--workers is -1; it must be 0"),
        ([*RUN, "--device", "gpu"], "--device is 'gpu'; write"),
        ([*RUN, "--device", "cuda:99"], "torch finds no such GPU"),
        ([*RUN, "--weights", "no.pth"], "there is no file no.pth"),
        ([*RUN, "--output", "run/config.yaml"], "cannot make the folder"),
        ([*RUN, "--output", "locked"], "cannot write to the folder"),
        (["--config-file", "frcnn_rsb_1", "sample/val"], "did you mean frcnn_rsb_1x"),
        (
            [*RUN, "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "7"],
            "with 6 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 7",
        ),
        (["--run", "mask_run", *RUN[2:], "--weights", "run/model_final.pth"], "not a complete"),
    ],
)
def test_mistakes_are_one_line(predict, arguments, message, monkeypatch):
    if "locked" in arguments:
        monkeypatch.setattr(os, "access", lambda *_: False)  # root can write everything
    status, out, err = predict(*arguments)
    assert status == 2 and out == ""
    assert message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and len(err) < 400


def test_names_of_outputs_are_distinct(tmp_path):
    for name in ("a/x.png", "b/x.jpg", "b/deep/x.jpg", "b/out/pictures/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    a, b = str(tmp_path / "a" / "x.png"), str(tmp_path / "b")
    names = [name for _, name in find_images([a, b, a], output_dir=str(tmp_path / "b" / "out"))]
    assert names == ["x", os.path.join("deep", "x"), "x_2"]


def test_videos_and_images_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.MP4", "mixed/c.mov", "mixed/d.png", "clips/e.webm", "mixed/f.mpg"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        open(name, "w").close()
    found = find_inputs(["a.jpg", "b.MP4", "mixed", "clips", "*", "*.jpg"])
    videos = [("b.MP4", "b"), ("mixed/c.mov", "c"), ("mixed/f.mpg", "f"), ("clips/e.webm", "e")]
    assert found.videos == videos
    assert found.images == [("a.jpg", "a"), ("mixed/d.png", "d")]
    assert [path for path, _ in find_images(["mixed"])] == ["mixed/d.png"]
    with pytest.raises(UserError, match="there is no image or folder none.mp4"):
        find_inputs(["a.jpg", "none.mp4"])


def test_the_best_weights_of_a_run_are_preferred(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((folder / "run" / "config.yaml").read_text())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_predict_config(run=str(run))
    for name in ("model_0000002.pth", "model_final.pth", "model_best.pth"):
        (run / name).write_bytes(b"")
        (run / "last_checkpoint").write_text("model_0000002.pth")
        assert load_predict_config(run=str(run)).MODEL.WEIGHTS == str(run / name)
