"""The commands of the README and of every page in docs/ do what the page says.

They are taken from the pages and run in order, each page in a folder like a fresh clone whose
configs are small enough for seconds; downloads and COCO are replaced by files made from seeds. By
default only the README's commands run, the others are slow. Commands that cannot run in a test are
parsed: their options, config keys and files must exist.
"""

import importlib.util
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from torch.distributed.run import get_args_parser as torchrun_parser

from rsb_d2.addons.commands import make_parser
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from rsb_d2.model_zoo.model_zoo import find_config
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.clone import PAGES, Clones, find_blocks, split_commands
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import COMMANDS, parse_tool

# Regular expressions of the commands that are not run, with the reason.
NOT_RUN = {
    r"make |source |pip install |python -m pytest ": "changes the installation, or runs the tests",
    r"#!/bin/bash\n#SBATCH": "needs a cluster",
    r"for i in .*CUDA_VISIBLE_DEVICES": "needs several GPUs",
    r"torchrun |(python train_net\.py|rsb-d2 train) .*--num-gpus (?!1 )": "needs several GPUs",
    r"rsb-d2 (demo|install-detectron2)": "tests/installation/test_wheel.py runs these",
    r"python train_net\.py .*SOLVER\.MAX_ITER \d{5}": "takes days",
    r"python train_net\.py .*LOGGERS": "needs wandb and mlflow; tests/addons/test_loggers.py",
    r"rsb-d2 (push|predict --weights hf:)": "needs the hub; tests/addons/test_hub.py",
    r"python train_net\.py --config-file configs/pretrain/\w+_rsb_a\d": "needs ImageNet",
    r"python train_net\.py --config-file configs/frcnn_torchvision_v2": (
        "needs torchvision's weights, which checkpoint/test_torchvision_detectors.py imitates"
    ),
    r"python packaging/test_lowest_versions\.py": "builds an environment and runs the tests in it",
    r"python tools/(benchmark|miniature)\.py": "takes long; tests/benchmarks runs the measurements",
    r"git clone .*BCCD|.*bccd": "needs photos of others, see test_tutorial.py",
    r"python tools/export\.py .*--int8": "needs 32 images; test_int8.py exports such files",
    r"python tools/sample_data\.py": "takes long; every folder has a few images of the sample data",
}
NOT_SHELL = ("", "yaml", "bibtex")
ENGINES = {"ray", "pyspark", "daft"}
# In the README: commands that take longest and have tests of their own.
SLOW = r"model\.pt2|torch\.export|trainer\.train\(\)|mask_rcnn_rsb_1x\.yaml|model\.xml"

# The files that each program writes; {} is the value of --output.
WRITTEN = {
    "browse_data.py": ["{}"],
    "report.py": ["{}"],
    "export.py": ["{}"],
    "predict.py": ["{}/results.json"],
    "convert_data.py": ["{}"],
}


def find_steps():
    """Yield (page, language, text) of every command and every block of Python, in order."""
    for page in PAGES:
        for block in find_blocks(page):
            if block.language in ("sh", "bash"):
                yield from ((page, "sh", command) for command in split_commands(block.text))
            elif block.language not in NOT_SHELL:
                yield page, block.language, block.text


def is_run(language, text):
    return language != "sh" or not any(re.match(start, text) for start in NOT_RUN)


def parameter(page, language, text):
    is_slow = is_run(language, text) and (page != "README.md" or re.search(SLOW, text))
    name = f"{page}-{' '.join(text.split())}"[:120]
    return pytest.param(page, language, text, id=name, marks=[pytest.mark.slow] * bool(is_slow))


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return Clones(tmp_path_factory.mktemp("clones"))


@pytest.mark.parametrize("page, language, text", [parameter(*step) for step in find_steps()])
def test_step(page, language, text, clones, monkeypatch):
    monkeypatch.chdir(clones.folder(page))
    if not is_run(language, text):
        parse(text, monkeypatch)
        return
    assert language in ("sh", "python"), f"no test runs {language}"
    command = text
    if language == "python":
        imported = re.findall(r"^(?:import|from) (\w+)", text, re.M)
        for name in imported:
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
        # Engines start processes, and need one that is not forked from another with threads.
        python = sys.executable if ENGINES.intersection(imported) else "python"
        command = f"{python} -c {shlex.quote(text)}"
    started = time.time() - 1  # clocks of file systems are coarse
    done = clones.run(page, command)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in written_by(text) if language == "sh" else []:
        assert path.exists() and path.stat().st_mtime >= started, path


def parse(command, monkeypatch):
    """Parse a command without running it; an option, key or file that does not exist fails."""
    if "#SBATCH" in command:
        (command,) = re.findall(r"^srun (.*)", command.replace("\\\n", " "), re.M)
        command = re.sub(r"\$\([^)]*\)|\$\w+", "1", command)
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun":
        args = torchrun_parser().parse_args(words[1:])
        words = ["python", args.training_script, *args.training_script_args]
    if words[:2] == ["python", "train_net.py"]:
        config_of(words)
    elif words[0] == "python" and words[1].startswith("tools/"):
        words = ["cpu" if word == "cuda" else word for word in words]  # which may be missing
        parse_tool(Path(words[1]).stem, words[2:])
    elif words[0] == "rsb-d2":
        make_parser().parse_args(words[1:])
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def config_of(words):
    program = words.index("train_net.py" if "train_net.py" in words else "train")
    args = default_argument_parser().parse_args(words[program + 1 :])
    return load_config(find_config(args.config_file), args.opts)


def written_by(command):
    words = shlex.split(command, comments=True)
    program = Path(words[1]).name
    if words[0] == "rsb-d2":
        program = next((f"{tool}.py" for tool, name in COMMANDS.items() if name == words[1]), "")
    if program == "convert_weights.py":
        return [Path(words[3])]
    if program == "train_net.py" and "--eval-only" not in words or words[:2] == ["rsb-d2", "train"]:
        folder = Path(config_of(words).OUTPUT_DIR)
        names = ("config.yaml", "metrics.json", "curves.png", "model_final.pth")
        return [folder / name for name in names]
    output = re.search(r"--output (\S+)", command)
    if "--output" not in words or "clip.mp4" in words or "--shard" in words:
        return []
    return [Path(name.format(output[1])) for name in WRITTEN.get(program, ())]


@pytest.mark.parametrize("page, text", [(p, b.text) for p in PAGES for b in find_blocks(p, "yaml")])
def test_yaml_is_a_config(page, text, clones, monkeypatch):
    monkeypatch.chdir(clones.folder(page))
    Path("shown.yaml").write_text(text)
    cfg = load_config("shown.yaml", [])
    assert cfg.dump() != load_config("", []).dump()
    if "my.yaml" in text.partition("\n")[0]:
        with catalogs_kept():
            register_coco_json(cfg)  # checks the files, and their classes against the model's
