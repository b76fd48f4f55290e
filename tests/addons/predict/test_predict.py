"""tools/predict.py: from a run or weights to pictures, a COCO results file and a table."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image
from pycocotools.coco import COCO

from rsb_d2 import UserError
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.data.class_names import find_class_names
from rsb_d2.predictor import Predictor, load_predict_config
from tests.helpers.clips import make_clip
from tests.helpers.paths import ROOT
from tests.helpers.seeded_run import (
    CLASSES,
    IDS,
    make_seeded_config,
    make_seeded_run,
)


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
    return json.loads((Path(output) / "results.json").read_text())


def test_a_run_and_a_folder(folder, predict, device):
    status, out, err = predict(
        "--run", "run", "sample/val", "--threshold", "0.3", "--device", device
    )
    assert status == 0
    output = folder / "run" / "predictions"
    assert sorted(p.name for p in (output / "pictures").iterdir()) == [
        f"00000{i}.jpg" for i in (1, 2, 3, 4)
    ]
    results = read_results(output)
    assert len(results) >= 10
    assert all(0.3 <= r["score"] <= 1 and r["category_id"] in IDS for r in results)
    # The two files together are what pycocotools reads.
    truth = COCO(str(output / "images.json"))
    loaded = truth.loadRes(str(output / "results.json"))
    assert {c["id"]: c["name"] for c in truth.loadCats(truth.getCatIds())} == dict(
        zip(IDS, CLASSES)
    )
    assert [i["file_name"] for i in truth.loadImgs([1, 4])] == [
        "sample/val/000001.jpg",
        "sample/val/000004.jpg",
    ]
    assert len(loaded.getAnnIds()) == len(results)
    # The table.
    lines = out.splitlines()
    assert lines[1].startswith("sample/val/000001.jpg") and any(n in lines[1] for n in CLASSES)
    assert f"4 images, {len(results)} objects: " in out
    assert "4/4" in err  # progress


def test_the_same_as_detectron2s_evaluation(folder, predict, device):
    one = ("--run", "run", "sample/val/000002.jpg", "--threshold", "0.3", "--output", "one")
    predict(*one, "--device", device)
    cfg = load_predict_config(run=str(folder / "run"), threshold=0.3, device=device)
    predictor = Predictor.from_config(cfg)
    record = {"file_name": str(folder / "sample/val/000002.jpg"), "image_id": 1}
    with torch.no_grad():
        output = predictor.model([DatasetMapper(cfg, is_train=False)(record)])
    expected = predictor.to_coco(output[0]["instances"].to("cpu"), 1)
    assert read_results(folder / "one") == expected and len(expected) >= 3


def test_masks_batches_and_bfloat16(folder, predict, device):
    mask = ("--run", "mask_run", "--threshold", "0.9", "--device", device)
    status, *_ = predict(*mask, "sample/val", "--output", "by_1")
    status_3, *_ = predict(*mask, "sample/val", "--output", "by_3", "--batch", "3")
    # Small, as it is slow where the CPU has no instructions for it.
    one = ("sample/val/000001.jpg", "--opts", "INPUT.MIN_SIZE_TEST", "48")
    status_16, *_ = predict(*mask, "--output", "b16", "--dtype", "bfloat16", *one)
    status_32, *_ = predict(*mask, "--output", "b32", *one)
    assert status == status_3 == status_16 == status_32 == 0
    by_1, by_3, b16, b32 = (read_results(folder / n) for n in ("by_1", "by_3", "b16", "b32"))
    assert len(by_1) >= 5 and all(len(r["segmentation"]["counts"]) > 0 for r in by_1)
    assert {r["image_id"] for r in by_3} == {r["image_id"] for r in by_1}
    assert len(by_3) == pytest.approx(len(by_1), rel=0.3)
    assert len(b16) == pytest.approx(len(b32), rel=0.3) and b16 != b32


def test_exif_orientation(folder, predict, tmp_path):
    image = Image.open(folder / "sample" / "val" / "000001.jpg")
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    image.save(upright)
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    arguments = ("--run", "run", upright, turned, "--threshold", "0.3", "--output", tmp_path / "o")
    assert predict(*arguments)[0] == 0
    results = read_results(tmp_path / "o")
    first, second = ([{**r, "image_id": 0} for r in results if r["image_id"] == i] for i in (1, 2))
    assert first == second and first


def test_unreadable_images_are_named_and_skipped(folder, predict, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.png").write_text("no image")
    (images / "notes.txt").write_text("not taken for an image")
    whole = (folder / "sample" / "val" / "000001.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "whole.jpg").write_bytes(whole)
    Image.new("RGB", (5000, 1)).save(images / "thread.png")  # no row is left of it when resized
    status, out, err = predict("--run", "run", images, "--output", tmp_path / "out")
    assert status == 1
    for name in ("empty.jpg", "text.png", "cut.jpg", "thread.png"):
        assert f"skipped {images / name}: " in err
    assert "notes.txt" not in err and "Traceback" not in err
    assert "1 image, " in out and "4 skipped" in out
    assert [p.name for p in (tmp_path / "out" / "pictures").iterdir()] == ["whole.jpg"]


def test_bad_videos_stop_nothing(folder, predict, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    image = (folder / "sample" / "val" / "000001.jpg").read_bytes()
    (mixed / "a.jpg").write_bytes(image)
    clip = make_clip(mixed / "good.mp4", num_frames=3).read_bytes()
    (mixed / "cut.mp4").write_bytes(clip[:3000])
    (mixed / "._good.mp4").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(4000))
    (mixed / "text.mts").write_text("export const a = 1;\n" * 50)
    (mixed / "empty.MOV").write_bytes(b"")
    (mixed / "gone.mkv").symlink_to("nowhere")
    make_clip(mixed / "frameless.mp4", num_frames=0)
    status, out, err = predict("--run", "run", mixed, "--output", tmp_path / "out")
    assert status == 1 and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("skipped")]
    bad = ["._good.mp4", "cut.mp4", "empty.MOV", "frameless.mp4", "gone.mkv", "text.mts"]
    assert [line.split(": ")[0] for line in lines] == [f"skipped {mixed / name}" for name in bad]
    assert "the file is empty" in lines[2] and "No such file" in lines[4]
    assert lines == err.splitlines()[-len(bad) :]  # at the end
    assert "1 image, " in out and f"{mixed / 'good.mp4'}: 3 frames" in out
    written = {p.name for p in (tmp_path / "out").rglob("*.*")}
    assert {"a.jpg", "results.json", "good.mp4", "good.results.json"} <= written
    assert not any("cut" in name for name in written)
    # A video that is named is treated like one in a folder.
    status, out, err = predict("--run", "run", mixed / "cut.mp4", "--output", tmp_path / "none")
    assert status == 1 and out == "" and "skipped" in err and not list(tmp_path.glob("none/**/*.*"))


def test_what_is_left_out_is_counted_and_named(folder, predict, tmp_path):
    top, far = tmp_path / "top", tmp_path / "far"
    image = (folder / "sample" / "val" / "000001.jpg").read_bytes()
    taken = ["a.jpg", "b.JPG", "c.mpo", ".hidden.jpg", "deep/d.Jpeg"]
    for name in [*taken, "e.HEIC", "f.heic", "notes.txt", "without", ".git/g.jpg"]:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(image)
    far.mkdir()
    (far / "h.jpg").write_bytes(image)
    (far / "back").symlink_to(top)
    (top / "linked").symlink_to(far)
    status, out, err = predict("--run", "run", top, "--output", tmp_path / "o", "--no-pictures")
    assert status == 0
    names = [
        i["file_name"] for i in json.loads((tmp_path / "o" / "images.json").read_text())["images"]
    ]
    assert names == sorted(str(top / name) for name in [*taken, "linked/h.jpg"])
    (note,) = [line for line in out.splitlines() if line.startswith("note: ")]
    assert note == (
        f"note: {top}: left out 2 .heic (e.HEIC, f.heic), 2 folders (.git/, linked/back/), "
        "1 .txt (notes.txt), 1 without an ending (without)"
    )


def test_a_folder_that_cannot_be_listed(folder, predict, tmp_path, monkeypatch):
    (tmp_path / "in" / "locked").mkdir(parents=True)
    image = (folder / "sample" / "val" / "000001.jpg").read_bytes()
    (tmp_path / "in" / "a.jpg").write_bytes(image)
    scandir = os.scandir

    def locked(path):  # as root, everything can
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    status, out, err = predict("--run", "run", tmp_path / "in", "--output", tmp_path / "out")
    assert status == 1 and "1 image, " in out
    assert err.splitlines()[-1] == f"skipped {tmp_path}/in/locked/: Permission denied"


def test_names_that_are_not_utf8(folder, predict, tmp_path):
    image = (folder / "sample" / "val" / "000001.jpg").read_bytes()
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.jpg")
    Path(path).write_bytes(image)
    make_clip(tmp_path / "a.mp4", num_frames=1)
    (tmp_path / "a.mp4").rename(os.fsdecode(os.fsencode(str(tmp_path)) + b"/clip\xe9.mp4"))
    status, out, err = predict("--run", "run", tmp_path, "--output", tmp_path / "out")
    out.encode(), err.encode()
    assert status == 1 and "1 image, " in out and "caf\\udce9.jpg" in out
    assert "clip\\udce9.mp4" in err.splitlines()[-1] and "is not UTF-8" in err.splitlines()[-1]
    assert (tmp_path / "out" / "pictures" / os.path.basename(path)).is_file()


def test_tar_files_among_others(folder, predict, tmp_path):
    val = folder / "sample" / "val"
    with tarfile.open(tmp_path / "good.TAR", "w") as tar:
        tar.add(val / "000001.jpg", "../../up.jpg")
        tar.add(val / "000002.jpg", "deep/b.jpg")
        tar.add(folder / "sample" / "annotations" / "val.json", "val.json")
    (tmp_path / "bad.tar").write_bytes(b"not a tar file" * 100)
    arguments = ("--run", "run", "--output", tmp_path / "out")
    status, out, err = predict(*arguments, tmp_path / "bad.tar", tmp_path / "good.TAR")
    assert status == 1 and "2 images, " in out
    assert (
        f"skipped {tmp_path / 'bad.tar'}: is not an uncompressed tar file" in err.splitlines()[-1]
    )
    assert f"note: {tmp_path / 'good.TAR'}: left out 1 .json (val.json)" in out
    pictures = [p for p in tmp_path.rglob("*.jpg")]
    assert {p.relative_to(tmp_path / "out" / "pictures").as_posix() for p in pictures} == {
        *("up.jpg", "deep/b.jpg")
    }
    status, out, err = predict(*arguments, tmp_path / "bad.tar")
    assert status == 2 and f"cannot read {tmp_path / 'bad.tar'}" in err


def test_an_image_that_jpeg_cannot_hold(folder, predict, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (3000, 10)).save(images / "long.png")
    (images / "z.jpg").write_bytes((folder / "sample" / "val" / "000001.jpg").read_bytes())
    arguments = ("--run", "run", images, "--output", tmp_path / "out", "--resume")
    status, out, err = predict(*arguments)
    assert status == 0 and "2 images, " in out
    with Image.open(tmp_path / "out" / "pictures" / "long.jpg") as picture:
        assert picture.size == (65_500, 218)
    assert predict(*arguments)[:2] == (0, out)


def test_nothing_detected(folder, predict, device):
    status, out, _ = predict(
        *("--run", "run", "sample/val/000001.jpg", "--threshold", "1", "--output", "none"),
        *("--device", device),
    )
    assert status == 0 and "1 image, 0 objects" in out
    assert read_results(folder / "none") == []
    assert (folder / "none" / "pictures" / "000001.jpg").is_file()


def test_results_alone_and_a_run_to_go_on_with(folder, predict):
    arguments = ("--run", "run", "sample/val", "--output", "again", "--no-pictures", "--resume")
    status, out, _ = predict(*arguments, "--threshold", "0.3")
    assert status == 0 and "pictures" not in out
    files = {p.name: p.read_bytes() for p in (folder / "again").iterdir()}
    assert files.keys() == {"results.json", "images.json", "run.json"}
    # All of it is done: the same again, without the model being asked.
    status, again, err = predict(*arguments, "--threshold", "0.3")
    assert status == 0 and again == out and "the run in again is finished" in err
    for changed, message in (
        (("--threshold", "0.4"), "was started with --threshold 0.3, not 0.4"),
        (("--threshold", "0.3", "--batch", "2"), "was started with --batch 1, not 2"),
        (("--threshold", "0.3", "--weights", "mask_run/model_final.pth"), ""),
        (("--threshold", "0.3", "--opts", "INPUT.MIN_SIZE_TEST", "64"), "MIN_SIZE_TEST 96, not 64"),
    ):
        status, out, err = predict(*arguments, *changed)
        assert status == 2 and out == "" and message in err
        assert len(err.strip().splitlines()) == 1
    assert {p.name: p.read_bytes() for p in (folder / "again").iterdir()} == files


def test_zoo_names_and_a_config_file(folder, predict, monkeypatch):
    # The config of zoo://NAME is known; that of any other file is to be named.
    cfg = make_seeded_config("faster")
    (folder / "mine.yaml").write_text(cfg.dump())
    weights = "run/model_final.pth"
    arguments = ("sample/val/000001.jpg", "--weights", weights, "--output", "from_file")
    status, *_ = predict(*arguments, "--config-file", "mine.yaml", "--threshold", "0.3")
    assert status == 0
    assert load_predict_config(weights="zoo://frcnn_rsb_1x").MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert "name a config with --config-file" in predict(*arguments)[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--run", "nowhere", "sample/val"], "--run: there is no folder nowhere"),
        (["--run", "sample", "sample/val"], "sample has no config.yaml"),
        (["--run", "run", "nothing.jpg"], "there is no image or folder nothing.jpg"),
        (["--run", "run", "*.gif"], "no file matches *.gif"),
        (["--run", "run", "sample/annotations"], "sample/annotations has no images in it"),
        (["--run", "run", "sample/val", "--threshold", "50"], "--threshold is 50.0; a score is"),
        (["--run", "run", "sample/val", "--batch", "0"], "--batch is 0"),
        (["--run", "run", "sample/val", "--workers", "-1"], "--workers is -1; it must be 0"),
        (["--run", "run", "sample/val", "--device", "gpu"], "--device is 'gpu'; write"),
        (["--run", "run", "sample/val", "--device", "cuda:99"], "torch finds no such GPU"),
        (["--run", "run", "sample/val", "--weights", "no.pth"], "there is no file no.pth"),
        (["--run", "run", "sample/val", "--output", "run/config.yaml"], "cannot make the folder"),
        (["--config-file", "frcnn_rsb_1", "sample/val"], "did you mean frcnn_rsb_1x"),
        (
            ["--run", "run", "sample/val", "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "7"],
            "with 6 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 7",
        ),
        (["--run", "mask_run", "sample/val", "--weights", "run/model_final.pth"], "not a whole"),
    ],
)
def test_mistakes_get_a_line(predict, arguments, message):
    status, out, err = predict(*arguments)
    assert status == 2 and out == ""
    assert message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and len(err) < 400


def test_a_folder_that_cannot_be_written(predict, folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, everything can
    status, _, err = predict("--run", "run", "sample/val/000001.jpg", "--output", "locked")
    assert status == 2 and "cannot write to the folder" in err


def test_decoders_do_not_write_to_stderr(folder, tmp_path):
    """FFmpeg reads its log level once per process, so this needs a process of its own."""
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "cut.mp4").write_bytes(make_clip(tmp_path / "clip.mp4").read_bytes()[:9000])
    program = [sys.executable, str(ROOT / "tools" / "predict.py"), "--run", "run", "--output", "o"]
    result = subprocess.run(
        [*program, tmp_path / "text.mp4", tmp_path / "cut.mp4"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        f"skipped {tmp_path / name}" for name in ("text.mp4", "cut.mp4")
    ]


# ---- which files, which weights, which names ----


def test_names_of_outputs_are_distinct(tmp_path):
    for name in ("a/x.png", "b/x.jpg", "b/deep/x.jpg", "b/out/pictures/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    a, b = str(tmp_path / "a" / "x.png"), str(tmp_path / "b")
    names = [name for _, name in find_images([a, b, a], output_dir=str(tmp_path / "b" / "out"))]
    assert names == ["x", os.path.join("deep", "x"), "x_2"]
    with pytest.raises(UserError, match="no file matches"):
        find_images([str(tmp_path / "c*")])


def test_the_best_weights_of_a_run_come_first(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((folder / "run" / "config.yaml").read_text())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_predict_config(run=str(run))
    for name in ("model_0000002.pth", "model_final.pth", "model_best.pth"):
        (run / name).write_bytes(b"")
        (run / "last_checkpoint").write_text("model_0000002.pth")
        assert load_predict_config(run=str(run)).MODEL.WEIGHTS == str(run / name)


def test_where_class_names_come_from():
    cfg = make_seeded_config("faster", "DATASETS.TEST", "('coco_2017_val',)")
    found = find_class_names(cfg, {"class_names": list("abcdef"), "class_ids": range(6)}, 6)
    assert (found.names, found.ids) == (tuple("abcdef"), tuple(range(6)))
    assert find_class_names(cfg, {"class_names": ["of", "another"]}, 6).names == tuple(CLASSES)
    coco = find_class_names(cfg, {}, 80)
    assert (coco.names[16], coco.ids[16]) == ("dog", 18)
    unknown = find_class_names(cfg, {}, 3)
    assert (unknown.names, unknown.ids) == (("class 0", "class 1", "class 2"), (1, 2, 3))


def test_pictures_show_what_was_found(folder, predict):
    predict("--run", "mask_run", "sample/val/000001.jpg", "--threshold", "0.3", "--output", "seen")
    picture = np.asarray(Image.open(folder / "seen" / "pictures" / "000001.jpg"))
    image = Image.open(folder / "sample" / "val" / "000001.jpg")
    assert min(picture.shape[:2]) >= 320  # enlarged, so that labels can be read
    plain = np.asarray(image.resize(picture.shape[1::-1]), dtype=float)
    assert (np.abs(picture - plain) > 60).mean() > 0.01
