"""Weights that are damaged, of something else, or meant to run code."""

import os
import pickle

import torch


class Malicious:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def save_cut(path):
    torch.save({f"layer{i}.weight": torch.randn(50, 50) for i in range(5)}, path)
    path.write_bytes(path.read_bytes()[:20000])


def save_other_architecture(path):
    import timm

    torch.save(timm.create_model("regnety_002").state_dict(), path)


def save_html(path):
    path.write_text("<!DOCTYPE html><html>404</html>")


def save_malicious(path):
    path.write_bytes(pickle.dumps({"model": Malicious()}))


def save_malicious_torch(path):
    torch.save({"model": {"weight": torch.zeros(1), "more": Malicious()}}, path)
