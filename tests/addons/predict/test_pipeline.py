"""Prediction of many images: the same files from any number of shards, killed or not."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from pycocotools.coco import COCO

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.addons.predict import writing
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.predict.pipeline import (
    ImageBatches,
    Loaded,
    Options,
    chunk_size,
    detect_all,
    predict_files,
)
from rsb_d2.addons.predict.results import Shard, format_table, merge_shards
from rsb_d2.predictor import Preparation
from tests.helpers import colour_finder
from tests.helpers.colour_finder import ColourFinder, make_images
from tests.helpers.damaged_files import jpeg
from tests.helpers.paths import ROOT

NUMBER = 42
BAD = 2  # of them


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return find_images([str(make_images(tmp_path_factory.mktemp("many") / "images", NUMBER))])


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """The outputs of one uninterrupted process, by batch size."""
    folder = tmp_path_factory.mktemp("expected")

    def get(batch):
        if not (folder / str(batch)).exists():
            predict_files(ColourFinder(), images, str(folder / str(batch)), Options(batch, 0))
        return contents(folder / str(batch))

    return get


def contents(folder):
    """All output files of a run except ``run.json``, by name."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != "run.json"}


def killed(call):
    """Call a function in a child process that kills itself."""
    child = os.fork()
    if not child:
        try:
            call()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] & 0x7F == signal.SIGKILL


def test_the_files_of_one_process(images, expected, tmp_path):
    found = expected(1)
    assert sorted(found) == sorted(
        ["images.json", "results.json"]
        + [f"pictures/{name}.jpg" for i, (_, name) in enumerate(images) if i not in (4, 8)]
    )
    records = json.loads(found["images.json"])
    results = json.loads(found["results.json"])
    # The id of an image is its position, including unreadable images.
    places = [i + 1 for i in range(NUMBER) if i not in (4, 8)]
    assert [r["id"] for r in records["images"]] == places
    assert [r["file_name"] for r in records["images"]] == [images[i - 1][0] for i in places]
    assert [r["image_id"] for r in results] == sorted(r["image_id"] for r in results)
    # The number of detections is that of the predictor, image by image.
    finder, own = ColourFinder(), []
    for index, (path, _) in enumerate(images):
        if index not in (4, 8):
            image = np.asarray(colour_finder.Image.open(path))
            own.append(len(finder([finder.preparation(image)])[0]))
    counts = Counter(r["image_id"] for r in results)
    assert [counts[i] for i in places] == own and sum(own) > NUMBER
    for name in ("images.json", "results.json"):  # as written by json.dump
        assert json.dumps(json.loads(found[name])).encode() == found[name]
        (tmp_path / name).write_bytes(found[name])
    truth = COCO(str(tmp_path / "images.json"))
    assert len(truth.loadRes(str(tmp_path / "results.json")).getAnnIds()) == len(results)


@pytest.mark.parametrize("batch, workers", [(1, 2), (4, 0), (4, 2)])
def test_workers_do_not_change_the_output(images, expected, tmp_path, batch, workers):
    out = tmp_path / "out"
    summary = predict_files(ColourFinder(), images, str(out), Options(batch, workers))
    assert contents(out) == expected(batch)
    assert (summary.num_images, summary.num_skipped) == (NUMBER - BAD, BAD)
    assert len(summary.rows) == 20 and sum(summary.counts.values()) > NUMBER


@pytest.mark.parametrize("batch", [1, 4])
def test_resuming_a_killed_run(images, expected, tmp_path, batch, capsys):
    out = str(tmp_path / "out")
    resume = Options(batch, 0, resume=True)
    calls = 0
    for kill_at in (5, 3, 4):
        assert killed(lambda n=kill_at: predict_files(ColourFinder(n), images, out, resume))
        calls += kill_at - 1
        assert not (tmp_path / "out" / "results.json").exists()
        with open(tmp_path / "out" / "progress" / "results-0.jsonl", "ab") as f:
            f.write(b'{"index": 41, "image": {"id"')  # an incomplete line
    finder = ColourFinder()
    predict_files(finder, images, out, resume)
    assert contents(out) == expected(batch)
    once = ColourFinder()
    predict_files(once, images, str(tmp_path / "once"), Options(batch, 0, pictures=False))
    assert calls + len(finder.batches) == len(once.batches)  # no batch twice
    assert "images are done" in capsys.readouterr().err
    # A finished run is not changed.
    idle = ColourFinder()
    summary = predict_files(idle, images, out, resume)
    assert idle.batches == [] and summary.num_images == NUMBER - BAD and len(summary.rows) == 20
    assert "is finished" in capsys.readouterr().err and contents(out) == expected(batch)


def test_without_resume_a_run_starts_again(images, expected, tmp_path, capsys):
    out, options = str(tmp_path / "out"), Options(1, 0)
    assert killed(lambda: predict_files(ColourFinder(5), images, out, options))
    finder = ColourFinder()
    predict_files(finder, images, out, options)
    assert "starts again; --resume would continue it" in capsys.readouterr().err
    assert len(finder.batches) == NUMBER - BAD and contents(out) == expected(1)
    assert not (tmp_path / "out" / "earlier").exists()
    # The output of a run of other images is moved.
    predict_files(ColourFinder(), images[:2], out, options)
    predict_files(ColourFinder(), images[:2], str(tmp_path / "two"), options)
    earlier = tmp_path / "out" / "earlier"
    assert str(earlier / "1") in capsys.readouterr().err
    assert contents(earlier / "1") == expected(1)
    shutil.rmtree(earlier)
    assert contents(out) == contents(tmp_path / "two")


def test_a_run_with_other_settings_is_not_resumed(images, tmp_path):
    out, settings = str(tmp_path), {"--threshold": 0.5, "the weights": "10 bytes, abc"}
    begun = Options(2, 0, resume=True)

    def run(images=images, options=begun, settings=settings, kill=2):
        predict_files(ColourFinder(kill), images, out, options, settings)

    assert killed(run)
    before = contents(out)
    for changed, message in (
        (dict(images=images[1:]), "other images"),
        (dict(options=Options(3, 0, resume=True)), "--batch 2, not 3"),
        (dict(options=Options(2, 0, pictures=False, resume=True)), "pictures True, not False"),
        (dict(settings={**settings, "--threshold": 0.3}), "--threshold 0.5, not 0.3"),
        (dict(settings={**settings, "the weights": "11 bytes, abd"}), "other weights"),
    ):
        with pytest.raises(UserError, match=message) as e:
            run(**changed)
        assert "\n" not in str(e.value) and "leave --resume out" in str(e.value)
    assert contents(out) == before
    run(options=Options(2, 1, resume=True), kill=0)  # the number of workers may change
    with pytest.raises(UserError, match="--threshold 0.5, not 0.3"):
        run(settings={**settings, "--threshold": 0.3})  # a finished run as well
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        run()


@pytest.mark.parametrize("batch", [1, 4])
def test_shards_have_the_files_of_one_process(images, expected, tmp_path, batch, capsys):
    """Three processes, of which one is killed and resumed, and one is run twice."""
    out, seen = str(tmp_path / "out"), []

    def run(number, kill_at=0):
        finder = ColourFinder(kill_at)
        options = Options(batch, 0, resume=True, shard=Shard(number, 3))
        summary = predict_files(finder, images, out, options)
        seen.append(sum(finder.batches))
        return summary

    total = run(3).num_images
    assert killed(lambda: run(2, 2))
    with pytest.raises(UserError, match="lacks the results of shard 1/3; run it with --shard 1/3"):
        merge_shards(out)
    total += run(1).num_images
    with pytest.raises(UserError, match="lacks the results of shard 2/3; run it with --shard 2/3"):
        merge_shards(out)
    assert not (tmp_path / "out" / "results.json").exists()
    total += run(2).num_images
    capsys.readouterr()
    assert run(2).num_images == total - run(3).num_images - run(1).num_images  # finished
    assert "is finished" in capsys.readouterr().err
    summary = merge_shards(out)
    assert contents(out) == expected(batch)
    assert (summary.num_images, summary.num_skipped) == (
        NUMBER - BAD,
        BAD,
    ) and total == NUMBER - BAD
    assert max(seen[:3]) - min(seen[:3]) <= chunk_size(batch) + BAD
    # As after a run of one process.
    idle = ColourFinder()
    assert predict_files(idle, images, out, Options(batch, 0, resume=True)) == summary
    assert idle.batches == []
    with pytest.raises(UserError, match="has no shards; name the --output"):
        merge_shards(out)


def test_shards_of_different_runs_are_not_merged(images, tmp_path):
    def run(number, count, threshold, images=images[:6]):
        options = Options(1, 0, pictures=False, shard=Shard(number, count))
        predict_files(ColourFinder(), images, str(tmp_path), options, {"--threshold": threshold})

    run(1, 2, 0.5)
    run(2, 2, 0.3)
    with pytest.raises(UserError, match="shard 1/2 was run with --threshold 0.5, not 0.3 of shard"):
        merge_shards(str(tmp_path))
    run(2, 2, 0.5, images[:7])
    with pytest.raises(UserError, match="shard 1/2 was run with other images"):
        merge_shards(str(tmp_path))
    run(1, 3, 0.5)
    with pytest.raises(UserError, match="shards of runs with 2 and 3 shards; remove"):
        merge_shards(str(tmp_path))


def test_more_shards_than_images(images, tmp_path):
    for number in range(1, 5):
        predict_files(
            *(ColourFinder(), images[:3], str(tmp_path / "out")),
            Options(1, 0, shard=Shard(number, 4)),
        )
    merge_shards(str(tmp_path / "out"))
    predict_files(ColourFinder(), images[:3], str(tmp_path / "one"), Options(1, 0))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "1", "1/2/3", "-1/2", "a/b", ""])
def test_a_wrong_shard_is_one_line(text):
    with pytest.raises(UserError, match=f"^--shard is {text}; write I/N, with I between 1 and N"):
        Shard.parse(text)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_cannot_be_drawn_or_written(images, expected, tmp_path, monkeypatch, workers):
    draw = writing.draw_detections

    def fails(rgb, found, names):
        if rgb.shape[:2] == (64, 96):
            raise ValueError("too long\nfor a picture")
        return draw(rgb, found, names)

    monkeypatch.setattr(writing, "draw_detections", fails)
    named = [(path, "x" * 260 if i == 3 else name) for i, (path, name) in enumerate(images)]
    options, out = Options(1, workers, resume=True), tmp_path / "out"
    summary = predict_files(ColourFinder(), named, str(out), options)
    reasons = {
        path: "too long" if colour_finder.Image.open(path).size == (96, 64) else "name"
        for i, (path, name) in enumerate(named)
        if i not in (4, 8) and (i == 3 or colour_finder.Image.open(path).size == (96, 64))
    }
    reasons = {p: os.strerror(errno.ENAMETOOLONG) if r == "name" else r for p, r in reasons.items()}
    assert summary.no_picture == [[path, reason] for path, reason in reasons.items()]
    assert len(reasons) > 3 and f"{len(reasons)} without a picture" in format_table(summary)
    found, complete = contents(out), expected(1)
    names = {f"pictures/{name}.jpg" for path, name in images if path in reasons}
    assert complete.keys() - found.keys() == names
    assert all(content == complete[name] for name, content in found.items())
    assert predict_files(ColourFinder(), named, str(out), options) == summary  # finished
    (tmp_path / "pictures" / f"{images[0][1]}.jpg").mkdir(parents=True)
    with pytest.raises(UserError, match=f"cannot write .*{images[0][1]}.jpg: Is a directory"):
        predict_files(ColourFinder(), images, str(tmp_path), Options(1, workers))


class ShortOfMemory(ColourFinder):
    """Runs out of memory for batches of more than two images, and for images of 96 x 64 pixels."""

    def __call__(self, batch):
        if len(batch) > 2 or any((e["width"], e["height"]) == (96, 64) for e in batch):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return super().__call__(batch)


def test_too_little_memory(images, expected, tmp_path, capsys):
    summary = predict_files(ShortOfMemory(), images, str(tmp_path), Options(4, 0))
    sizes = [
        colour_finder.Image.open(p).size if i not in (4, 8) else None
        for i, (p, _) in enumerate(images)
    ]
    assert summary.num_skipped == BAD + sizes.count((96, 64))
    err = capsys.readouterr().err
    assert err.count("there is too little memory for it") == sizes.count((96, 64)) > 3
    assert "a smaller --batch is faster" in err
    ids = [r["id"] for r in json.loads(contents(tmp_path)["images.json"])["images"]]
    assert ids == [i + 1 for i, size in enumerate(sizes) if size not in (None, (96, 64))]


@pytest.mark.slow
@pytest.mark.parametrize("number", [int(os.environ.get("PREDICTED_IMAGES", 1000))])
def test_two_shards_at_once_and_two_kills(tmp_path, number):
    """Each image once, the same files as from one process, and memory that does not grow."""
    folder = make_images(tmp_path / "images", number)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(output, *arguments):
        words = [sys.executable, colour_finder.__file__, str(folder), str(tmp_path / output)]
        options = ["--batch", "4", "--workers", "1", "--resume"]
        return subprocess.Popen([*words, *options, *arguments], env=environment, cwd=tmp_path)

    def statuses(*processes):
        return [process.wait(timeout=3600) for process in processes]

    shards = [["--shard", "1/2"], ["--shard", "2/2"]]
    for kill in (number // 24, number // 32):
        processes = [start("two", *shard, "--kill", str(kill)) for shard in shards]
        assert statuses(*processes) == [-signal.SIGKILL] * 2
    assert statuses(*(start("two", *shard) for shard in shards)) == [0, 0]
    merge_shards(str(tmp_path / "two"))
    assert statuses(start("one")) == [0]
    names = ("two.1-of-2", "two.2-of-2", "one.1-of-1")
    said = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    print(*said, sep="\n")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    ids = [r["id"] for r in json.loads((tmp_path / "two" / "images.json").read_text())["images"]]
    assert ids == [i + 1 for i in range(number) if i not in (4, 8)]
    assert said[0]["images"] + said[1]["images"] < number * 0.8  # the rest was not repeated
    for words in said:
        before, peak = words["MiB before and at the peak"]
        assert peak - before < 100


def test_a_cut_jpeg(tmp_path):
    cfg = get_cfg()
    add_rsb_config(cfg)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(320, 240)[:-500])
    for mode in ("auto", "partial"):
        cfg.INPUT.DAMAGED_IMAGES = mode
        batches = ImageBatches([str(path)], [0], [0], Preparation(cfg), 1, False)
        (loaded,) = next(iter(batches))
        assert ("damaged" in loaded.reason) == (mode == "auto")
        assert (loaded.prepared is None) == (mode == "auto")


@pytest.mark.parametrize(
    "device, order", [("cpu", "s0 f0 s1 f1 s2 f2 s3 f3"), ("cuda", "s0 s1 f0 s2 f1 s3 f2 f3")]
)
def test_a_gpu_computes_a_batch_while_another_is_read(device, order):
    events = []

    class Recorder:
        model = SimpleNamespace(device=torch.device(device))

        def start(self, batch):
            events.append(f"s{batch[0]}")

            def finish():
                events.append(f"f{batch[0]}")
                if len(batch) > 1:
                    raise MemoryError
                return [f"in {image}" for image in batch]

            return finish

    batches = [[Loaded(i, i, None)] for i in range(4)]
    found = list(detect_all(Recorder(), batches))
    assert events == order.split()
    assert found == [(batch, [(batch[0], f"in {i}")]) for i, batch in enumerate(batches)]
    # A batch whose results do not fit into memory is done one by one.
    batch = [Loaded(i, i, None) for i in (5, 6)]
    (found,) = detect_all(Recorder(), [batch])
    assert found == (batch, [(batch[0], "in 5"), (batch[1], "in 6")])
