"""Weights from a seed, and a Hugging Face cache folder that has them as the hub would give them."""

import contextlib
import hashlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import safetensors.torch
import timm
import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_weights(name, seed=0):
    """The state dict of timm's model with random weights, statistics and counters, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in timm.create_model(name).state_dict().items()}
    return {n: _make_tensor(n, shape, generator) for n, shape in shapes.items()}


def _make_tensor(name, shape, generator):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values * (2 / shape[1:].numel()) ** 0.5
    if name.endswith("weight"):
        # A small last norm of each bottleneck keeps a deep stack of them in range.
        return (0.2 if "bn3" in name else 1) * (1 + 0.1 * values)
    return 0.1 * values


def add_to_cache(cache, name, content):
    """Put a file of weights into a cache folder.

    Args:
        cache (Path): as in the environment's HF_HUB_CACHE.
        name (str): timm's name with its tag.
        content (dict[str, Tensor] or bytes): of model.safetensors.

    Returns:
        Path: the file.
    """
    if not isinstance(content, bytes):
        content = safetensors.torch.save(content, metadata={"format": "pt"})
    repository = Path(cache) / f"models--timm--{name}"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    file = repository / "snapshots" / COMMIT / "model.safetensors"
    for path in (blob, file, repository / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    (repository / "refs" / "main").write_text(COMMIT)
    file.symlink_to(os.path.relpath(blob, file.parent))
    return file


class FakeHub:
    """A hub on this machine that answers as huggingface.co does for files of a repository.

    Args:
        files (dict[str, bytes]): the files of every repository on it.
        cut_off_at (int): the first download breaks off after so many bytes; 0: it does not.
    """

    def __init__(self, files, cut_off_at=0):
        self.files = files
        self.cut_off_at = cut_off_at
        self.downloads = []  # (path, first byte)
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def serve(self):
        """Serve it; yields the address, as for the environment's HF_ENDPOINT."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        name = self.path.rpartition("/")[2]
        content = self.hub.files.get(name)
        if content is None or "/resolve/" not in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = int(re.match(r"bytes=(\d+)", self.headers.get("Range", "bytes=0"))[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self._send(content, first)

    def _send(self, content, first):
        with self.hub.lock:
            self.hub.downloads.append((self.path, first))
            end = self.hub.cut_off_at or len(content)
            self.hub.cut_off_at = 0
        self.wfile.write(content[first:end])
        self.wfile.flush()
        if end < len(content):
            self.connection.close()

    def log_message(self, *args):
        pass
