#!/usr/bin/env python
"""Install Detectron2 where it cannot be built from its own repository.

If `import detectron2` works, this program reports which one was found and changes nothing.
Otherwise it downloads the sdist pb1-detectron2 0.6 from the package index, checks its sha256,
applies detectron2-0.6.patch and installs the result as a pure-Python wheel named detectron2. The
header of the patch gives the reason for every change.

Rotated boxes and deformable convolution need compiled operators, which the wheel does not have:
using them raises an ImportError, importing them does not.

    python tools/install_detectron2.py                    # install, unless there is one already
    python tools/install_detectron2.py --wheel-dir wheels # only write the wheel to a folder

Install torch and torchvision first; the wheel does not require them, so installing it never
replaces them. This program uses only the standard library: neither git nor patch need be installed.
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PATCH = Path(__file__).parent / "detectron2-0.6.patch"
SDIST = "pb1-detectron2"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WHEEL = "detectron2-0.6-py3-none-any.whl"

# What goes into the wheel, and where. As in Detectron2's setup.py, three of its projects become
# packages below detectron2.projects.
FOLDERS = {
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# The requirements are those in setup.py of Detectron2's main branch, which does not name torch
# and torchvision either: a requirement could replace the build that fits the machine.
METADATA = """\
Metadata-Version: 2.1
Name: detectron2
Version: 0.6
Summary: Detectron2 0.6 as a pure-Python package, patched for current dependencies
Author: FAIR
License: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.10
Requires-Dist: Pillow>=7.1
Requires-Dist: matplotlib
Requires-Dist: pycocotools>=2.0.2
Requires-Dist: termcolor>=1.1
Requires-Dist: yacs>=0.1.8
Requires-Dist: tabulate
Requires-Dist: cloudpickle
Requires-Dist: tqdm>4.29.0
Requires-Dist: tensorboard
Requires-Dist: fvcore>=0.1.5,<0.1.6
Requires-Dist: iopath>=0.1.7,<0.1.10
Requires-Dist: omegaconf>=2.1,<2.4
Requires-Dist: hydra-core>=1.1
Requires-Dist: black
Requires-Dist: packaging
Description-Content-Type: text/plain

"""

WHEEL_INFO = """\
Wheel-Version: 1.0
Generator: install_detectron2
Root-Is-Purelib: true
Tag: py3-none-any
"""


class InstallError(Exception):
    """A failed installation; its text is the complete error message."""


def find_detectron2() -> str | None:
    """Return the version and folder of the Detectron2 that is installed; None if there is none.

    Raises:
        InstallError: if importing it fails.
    """
    if importlib.util.find_spec("detectron2") is None:
        return None
    try:
        import detectron2

        return f"detectron2 {detectron2.__version__} at {Path(detectron2.__file__).parent}"
    except Exception as e:
        raise InstallError(
            f"detectron2 is installed, but `import detectron2` fails ({type(e).__name__}: {e}); "
            "repair or uninstall it first"
        ) from e


def require_torch() -> None:
    missing = [x for x in ("torch", "torchvision") if importlib.util.find_spec(x) is None]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} not found: install torch and torchvision first"
        )


def run_pip(*args: str) -> bool:
    """Run pip in this interpreter's environment; return whether it succeeded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    return subprocess.run(command).returncode == 0


def download_sdist(folder: Path) -> Path:
    """Download the sdist with pip, which checks the hash before it runs any of the sdist's code."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST}==0.6 --hash=sha256:{SDIST_SHA256}\n")
    run_pip(
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary=:all:",
        "--no-build-isolation",  # the sdist's setup.py imports torch
        "--require-hashes",
        f"--requirement={requirements}",
        f"--dest={folder}",
    )
    found = sorted(folder.glob("*.tar.gz"))
    if len(found) != 1:
        # The sdist has a URL among its optional requirements.
        raise InstallError(
            f"pip did not download {SDIST} 0.6, see its messages above; pip 26.3 and newer refuse "
            "it: use an older pip, or pass a downloaded file with --sdist"
        )
    return found[0]


def read_sdist(path: Path) -> dict[str, bytes]:
    """Return the contents of the sdist's files by their paths below its top folder."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise InstallError(f"cannot read {path}: {e.strerror}") from e
    if digest != SDIST_SHA256:
        raise InstallError(f"{path} has sha256 {digest}, expected {SDIST_SHA256}")
    with tarfile.open(path) as tar:
        return {
            member.name.partition("/")[2]: tar.extractfile(member).read()
            for member in tar.getmembers()
            if member.isfile()
        }


def apply_patch(files: dict[str, bytes], patch: str) -> dict[str, bytes]:
    """Apply a unified diff that changes and adds files.

    Args:
        files (dict[str, bytes]): contents by path. They are not modified.
        patch (str): the diff, with the prefixes a/ and b/.

    Raises:
        InstallError: if a hunk does not match the lines at exactly its line number.
    """
    files = dict(files)
    _, *parts = re.split(r"(?m)^--- (\S+)\n\+\+\+ b/(\S+)\n", patch)
    for old_path, path, body in zip(parts[::3], parts[1::3], parts[2::3]):
        is_new = old_path == "/dev/null"
        if is_new == (path in files):
            raise InstallError(f"the patch does not fit: {path} is {'there' if is_new else 'not'}")
        lines = files.get(path, b"").decode("utf-8").split("\n")
        _, *hunks = re.split(r"(?m)^@@ -(\d+).*\n", body)
        # The last hunk first, so that the line numbers of the others stay valid.
        for number, hunk in reversed(list(zip(hunks[::2], hunks[1::2]))):
            changes = hunk.removesuffix("\n").split("\n")
            old = [line[1:] for line in changes if line[:1] != "+"]
            start = max(int(number) - 1, 0)
            where = slice(start, start + len(old))
            if lines[where] != old:
                raise InstallError(f"the patch does not fit: {path} differs at line {number}")
            lines[where] = [line[1:] for line in changes if line[:1] != "-"]
        files[path] = "\n".join(lines).encode("utf-8")
    return files


def wheel_content(files: dict[str, bytes], changes: str) -> dict[str, bytes]:
    """Return the contents of the wheel's files by path.

    Args:
        files (dict[str, bytes]): the patched sdist.
        changes (str): how it differs from the original, for the metadata.
    """
    content = {
        target + path[len(source) :]: data
        for path, data in files.items()
        for source, target in FOLDERS.items()
        if path.startswith(source)
    }
    content = dict(sorted(content.items()))
    info = "detectron2-0.6.dist-info"
    content[f"{info}/METADATA"] = (METADATA + changes).encode("utf-8")
    content[f"{info}/WHEEL"] = WHEEL_INFO.encode("utf-8")
    content[f"{info}/LICENSE"] = files["LICENSE"]
    content[f"{info}/top_level.txt"] = b"detectron2\n"
    record = ""
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(data)}\n"
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return content


def write_wheel(content: dict[str, bytes], folder: Path) -> Path:
    """Write the wheel completely or not at all. The same content gives the same bytes."""
    target = folder / WHEEL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            partial = Path(scratch, WHEEL)
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                for path, data in content.items():
                    entry = zipfile.ZipInfo(path)  # dated 1980
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
            os.replace(partial, target)
    except OSError as e:
        raise InstallError(f"cannot write {target}: {e.strerror}") from e
    return target


def build_wheel(folder: Path, sdist: Path | None = None) -> Path:
    """Build the wheel in a folder, from an sdist that is downloaded unless it is given."""
    patch = PATCH.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        if sdist is None:
            require_torch()
            sdist = download_sdist(Path(scratch))
        files = read_sdist(sdist)
    changes = patch.partition("\n--- ")[0]
    return write_wheel(wheel_content(apply_patch(files, patch), changes), folder)


def install(sdist: Path | None = None) -> None:
    """Install Detectron2 unless there is one, and print which one there is."""
    found = find_detectron2()
    if found is not None:
        print(f"Found {found}; nothing to do.")
        return
    require_torch()
    # The visualizer needs cv2, which several packages provide. A second one would overwrite the
    # first, so the wheel requires none.
    opencv = [] if importlib.util.find_spec("cv2") else ["opencv-python-headless"]
    with tempfile.TemporaryDirectory() as scratch:
        if not run_pip("install", str(build_wheel(Path(scratch), sdist)), *opencv):
            raise InstallError("pip did not install the wheel, see its messages above")
    importlib.invalidate_caches()
    print(
        f"Installed {find_detectron2()}, pure Python: no rotated boxes, no deformable convolution."
    )


def _path(text: str) -> Path:
    return Path(text).expanduser()


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--wheel-dir",
        type=_path,
        metavar="DIR",
        help="only build the wheel and write it to DIR, e.g. to copy it to another machine",
    )
    parser.add_argument(
        "--sdist",
        type=_path,
        metavar="FILE",
        help=f"use this {SDIST} 0.6 .tar.gz instead of downloading it",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.wheel_dir is not None:
            print(f"Wrote {build_wheel(args.wheel_dir, args.sdist)}")
        else:
            install(args.sdist)
    except InstallError as e:
        print(f"install_detectron2: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
