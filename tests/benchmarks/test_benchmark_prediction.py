"""tools/benchmark.py prediction: what is compared, and the shape of the report."""

import json
import sys

import pytest

from tests.helpers.runs.programs import load_tool


@pytest.mark.slow
def test_report(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    words = ["--images", "3", "--image-size", "96x128", "--test-size", "96", "--runs", "1"]
    words += ["--batch", "2", "--workers", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "prediction", *words])
    assert load_tool("benchmark").main() == 0
    report = json.loads(path.read_text())
    assert report["comparison"]["passed"] and report["comparison"]["text"].startswith("45 ")
    names = {"the model alone", "results", "results and pictures"}
    assert [row["what"] for row in report["rows"]] == ["3 images", "of the processor"]
    assert all(names < row.keys() and len(row["ratio"]) == 2 for row in report["rows"])
