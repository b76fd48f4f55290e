"""The commands of the pages that no test runs: for each kind its reason, and a check of it.

A check fails if the reason does not hold, and if the command would be refused where it does: a
misspelt key, an option that is no more, a file that is not there.
"""

import re
import runpy
import shlex
import subprocess
import sys

from detectron2.engine import default_argument_parser

from rsb_d2.config.loading import load_config
from rsb_d2.pretraining.data.loading import mix_group
from tests.helpers.paths import ROOT

LONG = 10_000  # iterations


def words_of(command):
    return shlex.split(command, comments=True)


def config_of(command):
    """The config of a command that trains; a key or file that does not exist is an error."""
    args = train_arguments(command)
    return load_config(args.config_file, args.opts)


def train_arguments(command):
    words = words_of(command)
    return default_argument_parser().parse_args(words[words.index("train_net.py") + 1 :])


# ---- checks ----


def is_for_several_gpus(command):
    words = words_of(command)
    if "torchrun" in words:
        from torch.distributed.run import get_args_parser

        options = words[words.index("torchrun") + 1 :]
        assert get_args_parser().parse_args(options).training_script == "train_net.py"
    else:
        assert train_arguments(command).num_gpus > 1
    assert config_of(command).DATASETS.TRAIN in [("coco_2017_train",), ("imagenet_train",)]


def is_a_prediction_by_several(command):
    from torch.distributed.run import get_args_parser

    words = words_of(command)
    args = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert args.training_script == "tools/predict.py"
    before, sys.argv = sys.argv, [args.training_script, *args.training_script_args]
    try:
        runpy.run_path(str(ROOT / args.training_script), run_name="tool")["parse_args"]()
    finally:
        sys.argv = before


def is_for_imagenet(command):
    cfg = config_of(command)
    assert cfg.DATASETS.TRAIN == ("imagenet_train",) and cfg.SOLVER.MAX_EPOCHS >= 100
    assert cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
    assert mix_group(cfg, cfg.SOLVER.IMS_PER_BATCH)
    assert cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATE_STEPS == 0


def is_for_a_cluster(command):
    subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    assert "#SBATCH" in command
    (line,) = re.findall(r"^srun (.*)", command.replace("\\\n", " "), re.M)
    is_for_several_gpus(re.sub(r"\$\([^)]*\)|\$\w+", "1", line))


def is_a_schedule_of_days(command):
    assert config_of(command).SOLVER.MAX_ITER >= LONG
    assert f"SOLVER.MAX_ITER {config_of(command).SOLVER.MAX_ITER}" in command


def is_a_long_measurement(command):
    """tests/benchmarks and tests/programs run what these run, on small models."""
    words = words_of(command)
    before, sys.argv = sys.argv, words[1:]
    try:
        runpy.run_path(str(ROOT / words[1]), run_name="tool")["parse_args"]()
    finally:
        sys.argv = before


def makes_an_installation(command):
    words = words_of(command)
    done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def is_of_the_installation(command):
    assert words_of(command)[1].startswith(".venv/bin/")
    assert "-m venv .venv" in (ROOT / "Makefile").read_text()


def changes_the_environment(command):
    """What pip would install is known to setup.py or requirements.txt."""
    what = words_of(command)[2:]
    extras = re.findall(r"^\.\[(\w+)\]$", " ".join(what))
    assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)
    packages = [word for word in what if not word.startswith(".")]
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(re.search(rf"^{re.escape(package)}==", pinned, re.M) for package in packages)


def runs_these_tests(command):
    (path,) = [word for word in words_of(command) if word.startswith("tests")]
    assert (ROOT / path).exists()


# Regular expressions on the beginning of a command; the first that matches counts.
NOT_RUN = {
    r"make ": makes_an_installation,
    r"source ": is_of_the_installation,
    r"pip install ": changes_the_environment,
    r"python -m pytest ": runs_these_tests,
    r"#!/bin/bash\n#SBATCH": is_for_a_cluster,
    r"torchrun .* tools/predict\.py ": is_a_prediction_by_several,
    r"torchrun ": is_for_several_gpus,
    r"python train_net\.py .*--num-gpus (?!1 )": is_for_several_gpus,
    r"python train_net\.py .*SOLVER\.MAX_ITER \d{5}": is_a_schedule_of_days,
    r"python train_net\.py --config-file configs/pretrain/\w+_rsb_a\d": is_for_imagenet,
    r"python tools/(benchmark|miniature)\.py": is_a_long_measurement,
}


def reason(command):
    """The check of a command that is not run; None for one that is."""
    return next((check for start, check in NOT_RUN.items() if re.match(start, command)), None)
