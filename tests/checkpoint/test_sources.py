"""timm:// from a hub cache as huggingface_hub lays it out, and zoo:// from OpenMMLab's server."""

import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from iopath.common import file_io

from rsb_d2 import Checkpointer, TimmBackbone, UserError, model_zoo
from rsb_d2.checkpoint import locate, sources
from rsb_d2.config.setup import setup
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.paths import CONFIGS
from tests.helpers.small_detector import check_features, make_config
from tests.helpers.weights.openmmlab import save_as_openmmlab, standin

PATH = "timm://resnet18.a1_in1k"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    return tmp_path / "hub"


# ---- timm:// ----


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("checkpointer_type", [Checkpointer, DetectionCheckpointer])
def test_loads_the_backbone_bit_for_bit(cache, weights, checkpointer_type, norm):
    file = add_to_cache(cache, "resnet18.a1_in1k", weights)
    detector = build_model(make_config(NORM=norm)).eval()
    checkpointer = checkpointer_type(detector)
    checkpointer.load(PATH)
    body = detector.backbone.bottom_up.body.state_dict()
    assert len(body) == (120 if norm == "BN" else 100)
    for name, tensor in body.items():
        assert torch.equal(tensor, weights[name]), name
    check_features(detector, "resnet18", weights)
    if checkpointer_type is Checkpointer:
        assert f"Weights from {PATH}\n  file:    {file}\n" in str(checkpointer.report)


# timm's feature nets of these have other names than the whole models, which the hub has.
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_stock_checkpointer_with_other_architectures(cache, name):
    weights = make_weights(name)
    # As in older files, without counters.
    add_to_cache(
        cache,
        f"{name}.r160_in1k",
        {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")},
    )
    model = torch.nn.ModuleDict({"backbone": TimmBackbone(f"{name}.r160_in1k")})
    DetectionCheckpointer(model).load(f"timm://{name}.r160_in1k")
    check_features(model["backbone"], name, weights)


def test_stock_checkpointer_tells_the_head_of_a_detector_from_the_backbone(cache, weights):
    """A box head with convolutions has a conv1.weight, too."""
    add_to_cache(cache, "resnet18.a1_in1k", weights)
    cfg = make_config()
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 64
    detector = build_model(cfg)
    heads = {n: t.clone() for n, t in detector.roi_heads.state_dict().items()}
    DetectionCheckpointer(detector).load(PATH)
    check_features(detector, "resnet18", weights)
    for name, tensor in detector.roi_heads.state_dict().items():
        assert torch.equal(tensor, heads[name])


def test_timm_paths_are_paths_of_detectron2(cache, weights):
    add_to_cache(cache, "resnet18.a1_in1k", weights)
    path = PathManager.get_local_path(PATH)
    assert PathManager.exists(PATH) and PathManager.isfile(PATH) and not PathManager.isdir(PATH)
    assert not PathManager.isfile("timm://resnet18.nonsense")
    with PathManager.open(PATH, "rb") as f:
        assert f.read() == Path(path).read_bytes()
    with pytest.raises(UserError, match="can be read only"):
        PathManager.open(PATH, "wb")
    # It is made once, and again for another file on the hub.
    made_at = os.stat(path).st_mtime_ns
    assert PathManager.get_local_path(PATH) == path and os.stat(path).st_mtime_ns == made_at
    os.unlink(locate(PATH))
    add_to_cache(cache, "resnet18.a1_in1k", make_weights("resnet18", seed=1))
    assert PathManager.get_local_path(PATH) != path


def test_without_cache_and_network(cache):
    with pytest.raises(UserError) as error:
        Checkpointer(TimmBackbone("resnet18")).load(PATH)
    message = str(error.value)
    assert f"is not in the cache {cache}, and HF_HUB_OFFLINE is set" in message
    assert "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in message
    assert "MODEL.WEIGHTS path/to/model.safetensors" in message
    assert "\n" not in message


def test_a_run_of_a_recipe_reaches_the_download(cache, tmp_path):
    args = default_argument_parser().parse_args(
        ["--config-file", str(CONFIGS / "frcnn_rsb_1x.yaml")]
    )
    with pytest.raises(UserError, match="timm://resnet50.a1_in1k is not in the cache"):
        setup(args)
    assert list(tmp_path.iterdir()) == []


def test_downloads_into_the_cache_once(cache, weights, monkeypatch, caplog):
    calls = []

    def download(repository, file_name, **kwargs):
        calls.append((repository, file_name))
        if file_name == "model.safetensors":
            raise huggingface_hub.errors.EntryNotFoundError("404")
        file = add_to_cache(cache, "resnet18.a1_in1k", b"")
        torch.save(weights, file.parent / file_name)
        file.unlink()
        return str(file.parent / file_name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with caplog.at_level(logging.INFO, logger="rsb_d2"):
        assert locate(PATH) == locate(PATH)
    repository = "timm/resnet18.a1_in1k"
    assert calls == [(repository, "model.safetensors"), (repository, "pytorch_model.bin")]
    assert "Downloading model.safetensors of timm/resnet18.a1_in1k" in caplog.text


def test_a_damaged_file_in_the_cache(cache, weights):
    file = add_to_cache(cache, "resnet18.a1_in1k", weights)
    blob = file.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError) as error:
        locate(PATH)
    assert f"{blob} is damaged" in str(error.value) and "delete it" in str(error.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("timm://resnet18.a9_in1k", "did you mean resnet18."),
        ("timm://resnet18d", "resnet18d.ra"),  # known, but of another architecture
        ("timm://resnet17.a1_in1k", "did you mean resnet18."),
        ("timm://../../etc/passwd", "has no weights"),
        ("timm://legacy_seresnet50.in1k", "legacy_seresnet50"),
    ],
)
def test_names_that_are_no_weights_of_the_backbone(path, words):
    with pytest.raises(UserError) as error:
        Checkpointer(TimmBackbone("resnet18")).load(path)
    assert words in str(error.value) or "MODEL.TIMM.NAME is resnet18" in str(error.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_a_hub_cache_that_cannot_be_written(cache, monkeypatch, number):
    def download(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(cache))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match="HF_HOME") as error:
        sources.fetch_timm("resnet18.a1_in1k")
    assert f"cannot write to the cache {cache}: {os.strerror(number)}" in str(error.value)
    assert "huggingface.co" not in str(error.value)


# ---- zoo:// ----


@pytest.fixture
def download_cache(tmp_path, monkeypatch):
    """Detectron2's cache folder, empty; a download that no test has foreseen fails."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PathManager._path_handlers["https://"], "cache_map", {})

    def download(url, dir, *, filename=None, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(file_io, "download", download)
    return tmp_path / "cache"


@pytest.fixture
def server(download_cache, monkeypatch):
    """A server; ``server[url] = path`` puts a file there."""
    files = {}

    def download(url, dir, *, filename=None, **kwargs):
        os.makedirs(dir, exist_ok=True)
        return shutil.copy(files[url], os.path.join(dir, filename))

    monkeypatch.setattr(file_io, "download", download)
    return files


def published(path, digest=None):
    """The address of a file as OpenMMLab would publish it."""
    digest = digest or hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{sources.SERVER}mmdetection/v2.0/some_{digest[:8]}/some-{digest[:8]}.pth"


def test_download_is_cached_checked_and_loaded(server, download_cache, tmp_path, monkeypatch):
    path = save_as_openmmlab(tmp_path / "file.pth", standin("faster_rcnn"))
    url = published(path)
    server[url] = path
    monkeypatch.setitem(sources.URLS, "frcnn_rsb_1x", url)
    cfg = model_zoo.get_config("frcnn_rsb_1x")
    cfg.MODEL.DEVICE = "cpu"
    checkpointer = Checkpointer(build_model(cfg))
    checkpointer.load("zoo://frcnn_rsb_1x")
    assert checkpointer.report.initial == [] == checkpointer.report.unused
    assert Path(checkpointer.report.path).is_relative_to(download_cache)
    server.clear()  # from here on it is in the cache
    assert PathManager.get_local_path("zoo://frcnn_rsb_1x") == checkpointer.report.path
    with PathManager.open("zoo://frcnn_rsb_1x", "rb") as f:
        assert f.read() == Path(path).read_bytes()

    model = model_zoo.get("frcnn_rsb_1x.yaml", trained=True, device="cpu")
    ours = dict(checkpointer.model.state_dict())
    assert all(torch.equal(ours[k], t) for k, t in model.state_dict().items())
    assert model.training


def test_damaged_downloads_are_deleted(server, download_cache, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"half of it")
    url = published(path, digest="0123456789abcdef")
    server[url] = path
    with pytest.raises(UserError, match="cut off.*not with 01234567.*deleted"):
        sources.fetch_published(url)
    assert not list(download_cache.rglob("*.pth"))


def test_damaged_files_in_the_cache_are_reported_and_kept(download_cache, tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    path.write_bytes(b"something else")
    url = published(path, digest="0123456789abcdef")
    monkeypatch.setitem(sources.URLS, "frcnn_rsb_1x", url)
    cached = download_cache / url.removeprefix(sources.SERVER)
    cached.parent.mkdir(parents=True)
    shutil.copy(path, cached)
    with pytest.raises(UserError, match=f"{cached} is damaged or another file"):
        sources.fetch_published("zoo://frcnn_rsb_1x")
    assert cached.is_file()


def test_force_downloads_again(server, download_cache, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"right")
    url = published(path)
    server[url] = path
    cached = Path(sources.fetch_published(url))
    cached.write_bytes(b"wrong")
    assert (
        Path(PathManager.get_local_path(sources.fetch_published(url, force=True))).read_bytes()
        == b"right"
    )


def test_the_error_without_a_network(download_cache):
    with pytest.raises(UserError) as e:
        sources.fetch_published("zoo://frcnn_rsb_1x")
    message = str(e.value)
    url = sources.URLS["frcnn_rsb_1x"]
    for part in (
        url,
        "Name or service not known",
        str(download_cache / url.removeprefix(sources.SERVER)),
    ):
        assert part in message
    with pytest.raises(UserError, match="failed"):
        model_zoo.get("frcnn_rsb_1x.yaml", trained=True, device="cpu")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match="did you mean zoo://frcnn_rsb_1x"):
        sources.fetch_published("zoo://frcnn_rsb_3x")
    with pytest.raises(UserError, match="read only"):
        PathManager.open("zoo://frcnn_rsb_1x", "w")
