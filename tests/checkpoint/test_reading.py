"""Files that are damaged, not checkpoints, not finite, or malicious: nothing in them is run."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.utils.file_io import PathManager

from rsb_d2 import Checkpointer, TimmBackbone, UserError
from rsb_d2.checkpoint.convert import convert_file
from rsb_d2.checkpoint.files import read_checkpoint, read_file
from tests.helpers.fake_hub import add_to_cache


@pytest.fixture(scope="module")
def backbone():
    return TimmBackbone("test_resnet")


def error_of(call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


def torch_bytes(content, **kwargs):
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, victim, function):
        self.victim = victim
        self.function = function

    def __reduce__(self):
        if self.function is exec:
            return exec, (f"open({str(self.victim)!r}, 'w')",)
        return self.function, (f"touch {self.victim}",)


class Setter:
    """An object whose unpickling sets an attribute of the unpickler's own stand-in."""

    def __reduce__(self):
        core = np.core if np.__version__ < "2" else np._core
        return core.numeric._frombuffer, (), {"tampered": True}


# How a trap may be packed: by torch.save of today and of old, as Detectron2's .pkl in several
# protocols, and with good weights.
def torch_trap(trap):
    return torch_bytes({"model": {"w": torch.zeros(2)}, "meta": trap})


def legacy_torch_trap(trap):
    return torch_bytes({"w": trap}, _use_new_zipfile_serialization=False)


def zip_with_a_pickle_of_ones_own(trap):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": trap}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def pickle_trap(protocol):
    def pack(trap):
        content = {"model": {"w": np.zeros(2), "x": trap}, "__author__": "somebody"}
        return pickle.dumps(content, protocol)

    return pack


PACKINGS = {
    "torch": torch_trap,
    "legacy torch": legacy_torch_trap,
    "zip": zip_with_a_pickle_of_ones_own,
    **{f"pickle {p}": pickle_trap(p) for p in range(6)},
}


def check_refused(message, path, type_name):
    assert str(path) in message and type_name in message, message


def test_the_cache_of_the_hub_and_the_converter_refuse_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    victim, path = tmp_path / "victim", "timm://test_resnet.r160_in1k"
    content = torch_trap(Trap(victim, os.system))
    cached = add_to_cache(tmp_path / "hub", "test_resnet.r160_in1k", content)
    check_refused(error_of(PathManager.get_local_path, path), cached, "posix.system")
    output = str(tmp_path / "output.pth")
    check_refused(error_of(convert_file, str(cached), output, "timm"), cached, "posix.system")
    assert not victim.exists() and not Path(output).exists()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("function", [os.system, exec])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_malicious_files_are_refused(tmp_path, backbone, packing, function, name):
    victim, path = tmp_path / "victim", tmp_path / name
    path.write_bytes(PACKINGS[packing](Trap(victim, function)))
    message = error_of(Checkpointer(backbone).load, str(path))
    check_refused(message, path, {os.system: "posix.system", exec: "exec"}[function])
    assert not victim.exists()


def test_more_than_plain_containers_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": np.zeros(2)}, "path": Path("x")}))
    assert "pathlib" in error_of(read_file, str(path))
    path.write_bytes(pickle.dumps(Setter()))
    error_of(read_file, str(path))
    torch.save({"model": {"w": torch.zeros(2)}, "run": Setter}, path)
    assert "Setter" in error_of(read_file, str(path))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_containers_are_read(tmp_path, protocol):
    content = {
        "model": OrderedDict(
            a=np.arange(6, dtype=np.float32).reshape(2, 3),
            b=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            c=np.int64(7),
            d=np.array(2, dtype=np.int64),
            e=np.zeros((0, 3), dtype=np.float16),
        ),
        "__author__": "somebody",
        "other": [1, 2.5, None, True, b"\xff\x00", "text", (1, {2})] if protocol > 3 else [1],
    }
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(str(path))
    for name, array in content["model"].items():
        assert np.array_equal(checkpoint["model"][name].numpy(), array)
        assert checkpoint["model"][name].numpy().dtype == array.dtype
    assert checkpoint["other"] == content["other"]


WEIGHTS = {"a": torch.arange(1000.0), "b": torch.ones(3)}
GOOD = {
    "torch": torch_bytes(WEIGHTS),
    "legacy torch": torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(WEIGHTS),
    "pickle": pickle.dumps({"model": {n: t.numpy() for n, t in WEIGHTS.items()}}, 2),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("kept", [1, 30, 300, -1])
def test_a_file_that_was_cut_off(tmp_path, kind, kept):
    path = tmp_path / "weights"
    path.write_bytes(GOOD[kind][:kept])
    assert str(path) in error_of(read_checkpoint, str(path))


@pytest.mark.parametrize("kind", ["torch", "safetensors", "pickle"])
def test_random_damage_raises_one_line_errors_only(tmp_path, kind):
    """Bytes changed at random: read with other numbers, or one line; never a traceback."""
    path = tmp_path / "weights"
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(GOOD[kind])
        for position in rng.integers(len(content), size=4):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_checkpoint(str(path))
        except UserError as e:
            assert "\n" not in str(e)


def test_a_wrong_checksum_in_a_torch_file(tmp_path):
    path = tmp_path / "weights.pth"
    content = bytearray(GOOD["torch"])
    content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert "damaged (wrong checksum of archive/data/" in error_of(read_checkpoint, str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page (HTML)"),
        (b"\xef\xbb\xbf  \n<html>", "is a web page (HTML)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"hello, this is no checkpoint", "neither safetensors nor"),
        (b"\x00" * 1000, "neither safetensors nor"),
        (b"{'a': 1}", "neither safetensors nor"),
        (torch_bytes([1, 2]), "holds a list, not a state dict"),
        (torch_bytes({}), "holds no tensors"),
        (torch_bytes({"a": 1, "b": "c"}), "a is a int, where a tensor should be"),
        (torch_bytes({1: torch.zeros(1)}), "has the key 1"),
        (torch_bytes({"model": {"a": "text"}}), "a is a str, where a tensor should be"),
        (pickle.dumps({"model": {"a": np.array(["text"])}}), "a is an array of <U4"),
        (pickle.dumps({"model": {"a": np.array([{}])}}), "a is an array of object"),
    ],
)
def test_files_that_are_not_checkpoints(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    message = error_of(read_checkpoint, str(path))
    assert words in message and str(path) in message


def test_a_zip_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)
    assert "no file of torch.save" in error_of(read_checkpoint, str(path))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    assert "TorchScript" in error_of(read_checkpoint, str(path))


# ---- tensors that are not finite ----

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("value, what", [(NAN, "NaN"), (INFINITE, "infinite values")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path, value, what, suffix, dtype):
    weights = {"a": torch.ones(3, dtype=dtype), "b": torch.ones(2, 2, dtype=dtype)}
    weights["b"][1, 0] = value
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif suffix == "pth":
        torch.save({"state_dict": weights}, path)
    else:
        arrays = {n: t.float().numpy() for n, t in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    assert f"has {what} in model.b:" in error_of(read_checkpoint, str(path))


def test_which_values_must_be_finite(tmp_path):
    weights = {
        **{"n": torch.tensor([2**62]), "f": torch.zeros(0), "b": torch.tensor(True)},
        "largest": torch.tensor(np.finfo(np.float32).max),
    }
    torch.save({"model": weights, "scheduler": {"last": INFINITE}}, tmp_path / "a.pth")
    assert read_checkpoint(str(tmp_path / "a.pth"))["model"].keys() == weights.keys()
    optimizer = {"state": {0: {"exp_avg": torch.tensor([1.0, NAN])}}, "param_groups": []}
    torch.save({"model": weights, "optimizer": optimizer}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"NaN in optimizer\.state\.0\.exp_avg:"):
        read_checkpoint(str(tmp_path / "a.pth"))
