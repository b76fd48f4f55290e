"""Files that are damaged or unusual, made byte by byte where no library would write them."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image


def png(width, height, *, depth=8, color_type=2, pixels=b""):
    """A PNG of this size in its header; ``pixels`` are its rows, and may be missing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def jpeg(width=100, height=80, seed=0, **options):
    """A JPEG with something to see in it."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    picture = Image.fromarray(noise.astype(np.uint8)).resize((width, height))
    f = io.BytesIO()
    picture.save(f, "JPEG", quality=90, **options)
    return f.getvalue()


def damage(content, rng: random.Random):
    """Flip, cut out, double or insert bytes, or cut the end off; some of it in the headers."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not content:
            break
        # Half of the damage is where the headers are.
        end = min(len(content), 700) if rng.random() < 0.5 else len(content)
        at = rng.randrange(end)
        length = rng.choice((1, 2, 8, 100))
        kind = rng.randrange(5)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at : at + length] = rng.randbytes(min(length, len(content) - at))
        elif kind == 2:
            content[at:at] = rng.randbytes(length)
        elif kind == 3:
            del content[at : at + length]
        else:
            del content[at:]
    return bytes(content)
