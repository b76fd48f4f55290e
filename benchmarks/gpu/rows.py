"""The rows that ``tools/gpu.py`` fills: a command and a time limit each, by part."""

import os
from typing import Dict, List, NamedTuple

# Trained by the part "train"; the part "inference" compares AP where it is there.
SAMPLE_OUTPUT = "output/gpu/sample"
_SAMPLE_WEIGHTS = f"{SAMPLE_OUTPUT}/model_final.pth"

_H100_BFLOAT16 = 989  # TFLOPS without sparsity, of NVIDIA's data sheet of the H100 SXM


class Row(NamedTuple):
    """A program to run.

    Args:
        name (str): unique.
        words (list[str]): its file and arguments, from the project's root.
        seconds (int): its time limit.
        has_report (bool): whether it writes a report of ``tools/benchmark.py`` with ``--json``.
    """

    name: str
    words: List[str]
    seconds: int
    has_report: bool = True


def rows_of_parts(device: str, root: str) -> Dict[str, List[Row]]:
    """All rows.

    Args:
        device (str): ``cuda``, or another for a trial.
        root (str): the folder that commands start from.

    Returns:
        dict[str, list[Row]]: by part, in the order in which they are to run.
    """
    weights = ["--weights", _SAMPLE_WEIGHTS]
    if not os.path.exists(os.path.join(root, _SAMPLE_WEIGHTS)):
        weights = []
    return {
        "tests": [
            Row("tests", ["-m", "pytest", "-q", "-m", "gpu", "--durations=10"], 480, False),
        ],
        "train": [_train(device)],
        "inference": _inference(device, weights),
        "training": _training(device),
        "pretraining": _pretraining(device),
        "prediction": [
            _benchmark(
                *("prediction bfloat16", "prediction", 180, "--device", device),
                *("--dtype", "bfloat16", "--images", "64", "--batch", "8", "--workers", "4"),
            )
        ],
        "evaluation": [
            _benchmark("evaluation", "evaluation", 240, "--images", "2000", "--runs", "3")
        ],
        "profile": _profiles(device),
    }


def _benchmark(name: str, what: str, seconds: int, *words: str) -> Row:
    return Row(name, ["tools/benchmark.py", what, *words], seconds)


def _train(device: str) -> Row:
    words = ["train_net.py", "--config-file", "configs/frcnn_rsb_sample.yaml"]
    opts = ["MODEL.DEVICE", device, "OUTPUT_DIR", SAMPLE_OUTPUT]
    return Row("train sample", [*words, *opts], 300, False)


def _inference(device: str, weights: List[str]) -> List[Row]:
    low = ["--dtype", "bfloat16", *weights]
    graphs = ["--compile", "reduce-overhead"]
    kinds = {
        "float32": [],
        "bfloat16": low,
        "bfloat16, graphs": [*low, *graphs],
        "float16, graphs": ["--dtype", "float16", *weights, *graphs],
        "bfloat16, graphs, not fused": [*low, *graphs, "--no-fuse"],
        "bfloat16, compiled": [*low, "--compile"],
    }
    # What the goals are of comes first.
    order = ["bfloat16, graphs", "bfloat16, graphs, not fused", "bfloat16", "float32"]
    order += ["float16, graphs", "bfloat16, compiled"]
    return [
        _benchmark(
            f"inference {kind} x{batch}",
            "inference",
            120,
            *("--device", device, "--image-size", "800x1333"),
            *("--batch", str(batch), "--runs", "20", *kinds[kind]),
        )
        for kind in order
        for batch in (1, 8)
    ]


def _training(device: str) -> List[Row]:
    kinds = {
        "bfloat16": ["--dtype", "bfloat16"],
        "float32": [],
        "bfloat16, compiled": ["--dtype", "bfloat16", "--compile"],
    }
    return [
        _benchmark(
            f"training {kind} x{batch}",
            "training",
            180,
            *("--device", device, "--image-size", "800x1333"),
            *("--batch", str(batch), "--runs", "10", *words),
        )
        for kind, words in kinds.items()
        for batch in (2, 16)
    ]


def _pretraining(device: str) -> List[Row]:
    low = ["--dtype", "bfloat16", "--peak-tflops", str(_H100_BFLOAT16)]
    kinds = {
        "bfloat16": [*low, "--loader-workers", "8"],
        "float32": [],
        "TF32": ["--tf32"],
        "bfloat16, compiled": [*low, "--compile"],
    }
    common = ["--device", device, "--procedure", "a3", "--batch", "256", "--runs", "10"]
    return [
        _benchmark(f"pretraining {kind}", "pretraining", 150, *common, *words)
        for kind, words in kinds.items()
    ]


def _profiles(device: str) -> List[Row]:
    common = ["--device", device, "--image-size", "800x1333", "--runs", "5", "--profile"]
    return [
        _benchmark(
            "profile inference",
            *("inference", 120, *common, "--dtype", "bfloat16", "--compile", "reduce-overhead"),
        ),
        _benchmark(
            "profile training",
            *("training", 150, *common, "--batch", "2", "--dtype", "bfloat16"),
        ),
    ]
