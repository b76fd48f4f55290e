"""One network's weights in the files of every format, and a model that stays as it was."""

import pickle
from collections import OrderedDict

import safetensors.torch
import timm
import torch

from rsb_d2.checkpoint.formats import resnet_to_detectron2
from tests.helpers.small_detector import make_detector


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_unchanged(model, before):
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def write_timm(path, weights):
    model = timm.create_model("resnet18")
    model.load_state_dict(weights)
    torch.save(model.state_dict(), path)  # an OrderedDict with _metadata, as torchvision's files


def write_legacy_torch(path, weights):
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def write_timm_training(path, weights):
    torch.save({"state_dict": {f"module.{n}": t for n, t in weights.items()}, "epoch": 3}, path)


def write_safetensors(path, weights):
    safetensors.torch.save_file(weights, path)


def write_openmmlab(path, weights):
    names = {n: n.replace("fc.", "head.fc.") if n[:2] == "fc" else f"backbone.{n}" for n in weights}
    state_dict = OrderedDict((names[n], t) for n, t in weights.items())
    torch.save({"meta": {"epoch": 100, "CLASSES": ["a"]}, "state_dict": state_dict}, path)


def as_detectron2(weights):
    return resnet_to_detectron2({n: t for n, t in weights.items() if n[:2] != "fc"})


def write_detectron2_pickle(path, weights):
    arrays = {n: t.numpy() for n, t in as_detectron2(weights).items() if "num_batches" not in n}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))


def write_detectron2_torch(path, weights):
    torch.save({"model": as_detectron2(weights), "matching_heuristics": True}, path)


def write_detector(path, weights):
    detector = make_detector(seed=2)
    body = detector.backbone.bottom_up.body
    body.load_state_dict({n: t for n, t in weights.items() if n[:2] != "fc"})
    torch.save({"model": detector.state_dict(), "iteration": 9}, path)


FORMATS = {
    "timm": (write_timm, "timm or torchvision classification model"),
    "legacy torch": (write_legacy_torch, "timm or torchvision classification model"),
    "timm training": (write_timm_training, "timm or torchvision classification model"),
    "safetensors": (write_safetensors, "timm or torchvision classification model"),
    "OpenMMLab": (write_openmmlab, "OpenMMLab classification model"),
    "Detectron2 pkl": (write_detectron2_pickle, "Detectron2 ResNet"),
    "Detectron2 pth": (write_detectron2_torch, "Detectron2 ResNet"),
    "detector": (write_detector, "rsb_d2 detector"),
}
