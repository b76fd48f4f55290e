"""A detector from a run to a stand-in for the Hugging Face hub, and from it into a predictor."""

import json

import huggingface_hub
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image

from rsb_d2 import Checkpointer, UserError
from rsb_d2.addons import hub as hub_module
from rsb_d2.addons.hub import push
from rsb_d2.checkpoint import locate
from rsb_d2.predictor import Predictor, load_detector, load_predict_config
from tests.helpers.hub_server import READ, WRITE, hub_server
from tests.helpers.seeded_run import CLASSES, IDS, make_seeded_config

NAME = "me/shapes"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield server


@pytest.fixture(scope="module")
def loaded(seeded_run):
    return load_detector(load_predict_config(run=str(seeded_run)))


@pytest.fixture
def push_quickly(monkeypatch, loaded):
    """Do not load the same weights again in each test."""
    monkeypatch.setattr(hub_module, "load_detector", lambda cfg: loaded)


def files(hub, branch="main", name=NAME):
    repository = hub.repositories[name]
    return repository["commits"][repository["branches"][branch]]


def test_a_pushed_detector_computes_the_same(hub, seeded_run, loaded, monkeypatch):
    address = push(str(seeded_run), NAME)
    assert address.startswith(f"{hub.address}/{NAME}/commit/")
    monkeypatch.setenv("HF_TOKEN", "")
    cfg = load_predict_config(weights=f"hf://{NAME}")
    commit = hub.repositories[NAME]["branches"]["main"]
    assert cfg.MODEL.WEIGHTS == f"hf://{NAME}@{commit}"
    model, classes = load_detector(cfg)
    expected, _ = loaded
    weights = model.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in expected.state_dict().items())
    assert (list(classes.names), list(classes.ids)) == (CLASSES, IDS)
    image = torch.randint(0, 255, (60, 80, 3), dtype=torch.uint8).numpy()
    found, other = (
        Predictor(cfg, m, classes)([Predictor(cfg, m, classes).prepare(image)])[0]
        for m in (model, expected)
    )
    assert len(found) > 0 and torch.equal(found.scores, other.scores)


def test_weights_of_the_hub_for_another_config(hub, push_quickly, seeded_run):
    push(str(seeded_run), NAME)
    other = make_seeded_config("faster", "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    checkpointer = Checkpointer(build_model(other))
    checkpointer.load(f"hf://{NAME}", checkpointables=[])
    assert checkpointer.report.classes == (6, 3)


def test_nothing_of_this_machine_is_uploaded(hub, push_quickly, seeded_run, tmp_path):
    run = tmp_path / "a run"
    cfg = make_seeded_config(
        *("faster", "OUTPUT_DIR", str(run), "LOGGERS", "('wandb',)"),
        *("DATASETS.COCO_JSON", f"[['own', '{tmp_path}/own.json', '{tmp_path}/images']]"),
        *("DATASETS.TRAIN", "('own',)", "DATASETS.CACHE", str(tmp_path)),
    )
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    (run / "model_final.pth").write_bytes((seeded_run / "model_final.pth").read_bytes())
    push(str(run), NAME)
    assert set(files(hub)) == {"README.md", "config.yaml", "model.safetensors"}
    assert not any(str(tmp_path).encode() in content for content in files(hub).values())
    config = yaml.safe_load(files(hub)["config.yaml"])
    assert config["DATASETS"]["CLASS_NAMES"] == CLASSES and config["LOGGERS"] == []
    assert "trained on | own |" in files(hub)["README.md"].decode()


def test_the_card_has_the_metrics_of_the_uploaded_weights(hub, push_quickly, seeded_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    cfg = make_seeded_config(
        "faster", "OUTPUT_DIR", str(run), "SOLVER.MAX_ITER", "30", "DATASETS.TEST", "('val',)"
    )
    (run / "config.yaml").write_text(cfg.dump())
    for name in ("model_final.pth", "model_best.pth"):
        (run / name).write_bytes((seeded_run / "model_final.pth").read_bytes())
    lines = [
        {"iteration": 9, "bbox/AP": 11.11, "bbox/AP50": 22.22, "bbox/AP-star": 1.0},
        {"iteration": 30, "bbox/AP": 7.77, "total_loss": 0.5},
    ]
    (run / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (run / "best.json").write_text(json.dumps({"best": {"iterations": 10, "value": 11.11}}))
    push(str(run), NAME, license="apache-2.0")
    card = files(hub)["README.md"].decode()
    assert "| val | bbox | 11.1 | 22.2 |  |  |  |  |" in card and "7.8" not in card
    data = huggingface_hub.ModelCard(card).data
    assert (data.license, data.library_name) == ("apache-2.0", "rsb_d2")
    assert data.pipeline_tag == "object-detection"
    assert f"rsb-d2 predict --weights hf://{NAME} images/" in card
    push(str(run), NAME, weights=str(run / "model_final.pth"))
    assert "| val | bbox | 7.8 |" in files(hub)["README.md"].decode()


def test_revisions(hub, push_quickly, seeded_run, monkeypatch, tmp_path):
    push(str(seeded_run), NAME)
    push(str(seeded_run), NAME, revision="v2", license="mit")
    path = locate(f"hf://{NAME}@v2")
    assert hub.repositories[NAME]["branches"]["v2"] in path
    # Without a network, a branch is what it was.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    requests = list(hub.requests)
    assert locate(f"hf://{NAME}@v2") == path
    with pytest.raises(UserError, match="is not in the cache .* HF_HUB_OFFLINE is set"):
        locate(f"hf://{NAME}@main")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so nothing was uploaded"):
        push(str(seeded_run), NAME)
    assert hub.requests == requests


def test_private_repositories_need_a_token(hub, push_quickly, seeded_run, monkeypatch):
    push(str(seeded_run), NAME, private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="has no repository me/shapes, or it is private.*HF_TOKEN"):
        locate(f"hf://{NAME}")
    monkeypatch.setenv("HF_TOKEN", READ)
    assert locate(f"hf://{NAME}").endswith("model.safetensors")
    for token in ("", READ, "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match="refuses the upload; run `hf auth login`"):
            push(str(seeded_run), NAME)


@pytest.mark.parametrize(
    "path, message",
    [
        ("hf://me/nothing", "has no repository me/nothing"),
        (f"hf://{NAME}@v9", "me/shapes on the hub has no revision v9"),
        (f"hf://{NAME}@empty", "me/shapes has no config.yaml at empty, so it is not a detector"),
        ("hf://shapes", "hf://shapes is not the name of a repository.*write hf://OWNER/NAME"),
        ("hf://a/b/c", "hf://a/b/c is not the name of a repository"),
        ("hf://", "hf:// is not the name of a repository"),
    ],
)
def test_mistakes_are_one_line(hub, seeded_run, path, message):
    huggingface_hub.HfApi().create_repo(NAME)
    huggingface_hub.HfApi().create_branch(NAME, branch="empty")
    with pytest.raises(UserError, match=message) as e:
        load_predict_config(weights=path)
    assert len(str(e.value).splitlines()) == 1


def test_a_wrong_token_is_one_line(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="run `hf auth login`") as e:
        locate(f"hf://{NAME}")
    assert len(str(e.value).splitlines()) == 1


def test_what_is_pushed_must_be_a_detector(hub, seeded_run, tmp_path):
    with pytest.raises(UserError, match="--run: there is no folder"):
        push(str(tmp_path / "nothing"), NAME)
    with pytest.raises(UserError, match="shapes is not the name of a repository"):
        push(str(seeded_run), "shapes")
    assert not hub.repositories


def test_the_commands(hub, tool, monkeypatch, tmp_path):
    status, output, _ = tool("push", "{run}", NAME, "--private", "--license", "mit")
    assert status == 0 and f"/{NAME}/commit/" in output
    assert hub.repositories[NAME]["private"]
    Image.effect_noise((64, 48), 90).convert("RGB").save(tmp_path / "a.png")
    arguments = ["--weights", f"hf://{NAME}", "--no-pictures", str(tmp_path / "a.png")]
    status, _, _ = tool("predict", *arguments)
    assert status == 0
    categories = json.loads((tmp_path / "predictions" / "images.json").read_text())["categories"]
    assert [c["name"] for c in categories] == CLASSES
    status, _, errors = tool("push", "{run}", "shapes")
    assert status == 2 and len(errors) == 1 and errors[0].startswith("push.py: error: shapes is")
