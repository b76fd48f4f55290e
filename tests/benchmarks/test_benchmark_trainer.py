"""tools/benchmark.py trainer: both trainers take the same steps, and the shape of the report."""

import argparse

import pytest

from benchmarks.report import add_ratios, format_report
from benchmarks.running import trainer
from rsb_d2 import UserError


def make_args(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    trainer.add_arguments(parser)
    return parser.parse_args(["--image-size", "64x96", "--iterations", "1", *words])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [["1"], ["1", "2"]])
def test_report(processes, monkeypatch):
    config = trainer._config

    def small_config(*args):
        cfg = config(*args)
        cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32])
        return cfg

    monkeypatch.setattr(trainer, "_config", small_config)  # of what runs in this process
    report = trainer.run(make_args("--processes", *processes))
    assert report["comparison"]["passed"], report["comparison"]["text"]
    add_ratios(report)
    assert [row["what"].split(", ")[1:] for row in report["rows"]] == [
        [f"{number} process" + ("es" if number == "2" else ""), kind]
        for number in processes
        for kind in ("clock", "processor")
    ]
    assert all(row["ratio"]["ours"]["median"] > 0 for row in report["rows"])
    assert "the same: total losses of the first 3 iterations" in format_report(report)


def test_other_losses_are_no_comparison():
    assert trainer._compare({"stock": [1.0, 2.0], "ours": [1.0, 2.0]})["passed"]
    assert not trainer._compare({"stock": [1.0, 2.0], "ours": [1.0, 2.001]})["passed"]


@pytest.mark.parametrize("words", [["--processes", "0"], ["--iterations", "0"]])
def test_mistakes(words):
    with pytest.raises(UserError, match=f"{words[0]} is "):
        trainer.run(make_args(*words))
