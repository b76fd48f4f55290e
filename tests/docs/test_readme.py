"""README.md: what it links to is there, and the commands of "Your own data" do what it says.

The commands are found in the README itself, and run as they stand and in its order in a folder
like a fresh clone, whose configs are made small enough for seconds. What comes from the network
lies in caches, made from seeds.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from rsb_d2 import Checkpointer, UserError
from rsb_d2.checkpoint import zoo
from rsb_d2.config.loading import load_config
from rsb_d2.data import make_sample_data, register_coco_json
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.paths import ROOT
from tests.helpers.seeded_run import SMALL as SMALL_MODEL
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

README = (ROOT / "README.md").read_text()
SECTION = re.search(r"^## Your own data\n(.*?)^## ", README, re.M | re.S)[1]

# The sample config, in seconds.
SMALL = {
    "MODEL": {"TIMM": {"NAME": "resnet18"}, "FPN": {"OUT_CHANNELS": 32}},
    "DATASETS": {"SAMPLE_DATA": ""},  # which is there, and has a few images only
    "SOLVER": {"MAX_ITER": 3, "IMS_PER_BATCH": 2, "WARMUP_ITERS": 1},
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
}
# What each program leaves where its command says, and nothing else.
WRITTEN = {
    "browse_data.py": ["", ".png"],
    "report.py": [""],
    "export.py": [""],
    "predict.py": ["/results.json", "/images.json", "/pictures"],
}
RUN = "output/frcnn_rsb_sample"
WRITTEN_BY_TRAINING = [
    *("config.yaml", "metrics.json", "curves.png", "model_best.pth", "model_final.pth"),
    *("best.json", "inference/coco_instances_results.json"),
]


def blocks(text, *languages):
    """The code blocks of a text, without the line of the language."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.M | re.S)


def commands(text):
    lines = "".join(blocks(text, "sh", "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = commands(SECTION)


def merge(config, changes):
    for key, value in changes.items():
        if isinstance(value, dict):
            merge(config.setdefault(key, {}), value)
        else:
            config[key] = value
    return config


def write_small_config(name, folder, changes):
    config = yaml.safe_load((ROOT / "configs" / name).read_text())
    (folder / "configs" / name).unlink()
    (folder / "configs" / name).write_text(yaml.safe_dump(merge(config, changes)))


def nested(options):
    """``KEY VALUE`` pairs as a YAML file would have them."""
    tree = {}
    for key, value in zip(options[::2], options[1::2]):
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder like a fresh clone, with small configs and the sample data."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("rsb_d2", "tools", "docs", "train_net.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").iterdir():
        (folder / "configs" / path.name).symlink_to(path)
    write_small_config("frcnn_rsb_sample.yaml", folder, SMALL)
    make_sample_data(str(folder / "datasets" / "rsb_sample"), num_train=6, num_val=4)
    return folder


@pytest.fixture(scope="module")
def environment(clone, tmp_path_factory):
    """The environment of the commands: without a network, and with what they would download."""
    caches = tmp_path_factory.mktemp("caches")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(caches), str(clone)]),
        "HF_HUB_CACHE": str(caches / "hub"),
        "HF_HUB_OFFLINE": "1",
        "FVCORE_CACHE": str(caches / "fvcore"),
        "DETECTRON2_DATASETS": str(clone / "datasets"),
        "OMP_NUM_THREADS": "1",
    }
    # Published weights: their config and they themselves are small, and so have another digest.
    small = [*SMALL_MODEL, "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    weights = make_seeded_model(make_seeded_config("faster", *small))
    Checkpointer(weights, str(caches)).save("weights")
    content = (caches / "weights.pth").read_bytes()
    url = f"{zoo.SERVER}small-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    cached = caches / "fvcore" / url.removeprefix(zoo.SERVER)
    cached.parent.mkdir()
    cached.write_bytes(content)
    changes = nested(small)
    del changes["DATASETS"], changes["MODEL"]["WEIGHTS"]
    write_small_config("frcnn_rsb_1x.yaml", clone, changes)
    (caches / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('zoo://' in argument for argument in sys.orig_argv):\n"
        "    from rsb_d2.checkpoint import zoo\n"
        f"    zoo.URLS['frcnn_rsb_1x'] = {url!r}\n"
    )
    return environment


# ---- the section on one's own data ----


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, clone, environment):
    done = subprocess.run(
        command,
        shell=True,
        executable="/bin/bash",
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    program = Path(re.search(r"\S+\.py", command)[0]).name
    if program == "train_net.py":
        for name in WRITTEN_BY_TRAINING:
            assert (clone / RUN / name).is_file() and Path(name).name in SECTION
        assert "val_total_loss" in (clone / RUN / "metrics.json").read_text()
        config = yaml.safe_load((clone / RUN / "config.yaml").read_text())
        assert config["DATASETS"]["CLASS_NAMES"] == ["circle", "square", "triangle", "star"]
    elif program in WRITTEN:
        run, output = (re.search(rf"--{o} (\S+)", command) for o in ("run", "output"))
        output = clone / (output[1] if output else f"{run[1]}/predictions")
        for suffix in WRITTEN[program]:
            path = output.with_suffix(suffix) if suffix == ".png" else Path(f"{output}{suffix}")
            assert path.exists(), path
    else:
        assert done.stdout.strip(), command


def test_all_programs_are_gone_through():
    text = " ".join(COMMANDS)
    programs = [*WRITTEN, "train_net.py", "run_onnx.py"]
    assert all(program in text for program in programs)


def test_the_config_of_ones_own_data(clone, monkeypatch):
    (block,) = blocks(SECTION, "yaml")
    name = re.match(r"# (\S+\.yaml)\n", block)[1]
    (clone / name).write_text(block)
    content = json.loads((clone / "datasets/rsb_sample/annotations/val.json").read_text())
    content["categories"] = [{"id": i, "name": f"thing {i}"} for i in range(1, 13)]
    (clone / "my").mkdir()
    (clone / "my" / "images").symlink_to(clone / "datasets" / "rsb_sample" / "val")
    for split in ("train", "val"):
        (clone / "my" / f"{split}.json").write_text(json.dumps(content))
    monkeypatch.chdir(clone)
    cfg = load_config(name, [])
    register_coco_json(cfg)  # which checks the files, and their classes against the model's
    assert cfg.DATASETS.TRAIN == ("my_train",) and cfg.DATASETS.TEST == ("my_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 11
    with pytest.raises(UserError, match="NUM_CLASSES is 11"):
        register_coco_json(cfg)
    (words,) = re.findall(r'`DATASETS\.COCO_JSON "(.*?)"`', SECTION)
    assert load_config("", ["DATASETS.COCO_JSON", words]).DATASETS.COCO_JSON == [
        ["my_train", "my/train.json", "my/images"]
    ]


# ---- the rest ----


def test_all_links_and_pictures_lead_somewhere():
    for path in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_python_blocks(clone, environment):
    """All of them in one process, with the names that they take for granted."""
    add_to_cache(environment["HF_HUB_CACHE"], "resnet50.a1_in1k", make_weights("resnet50"))
    coco = clone / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "train2017").symlink_to(clone / "datasets" / "rsb_sample" / "val")
    content = json.loads((clone / "datasets/rsb_sample/annotations/val.json").read_text())
    content["categories"] = [c for c in COCO_CATEGORIES if c["isthing"]]
    (coco / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    # What the README shows of a config is the part of it that has to do with this project.
    config = yaml.safe_load(blocks(README.partition("my_config.yaml")[2], "yaml")[0])
    small = {
        "_BASE_": "configs/frcnn_rsb_1x.yaml",
        "MODEL": {"DEVICE": "cpu"},
        "DATASETS": {"TEST": []},
        "INPUT": SMALL["INPUT"],
        "SOLVER": {"MAX_ITER": 1, "IMS_PER_BATCH": 2, "STEPS": []},
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    (clone / "my_config.yaml").write_text(yaml.safe_dump(merge(config, small)))
    (clone / "blocks.json").write_text(json.dumps(blocks(README, "python")))
    script = (
        "import json\n"
        "from rsb_d2 import TimmBackbone\n"
        "for block in json.load(open('blocks.json')):\n"
        "    exec(block, {'model': TimmBackbone('resnet50')})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "zoo://"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (clone / "output" / "model_final.pth").is_file()  # the first block trains
