#!/usr/bin/env python
"""Install Detectron2 where it cannot be built from its own repository.

If `import detectron2` works, this program says which one was found and changes nothing.
Otherwise it takes Detectron2 0.6's source from the package index (the sdist `pb1-detectron2`,
whose Python files are those of the official tag v0.6), checks its sha256, applies the mends in
`MENDS` so that it runs on today's Python, PyTorch, NumPy and Pillow, and installs the result as
a pure-Python wheel named `detectron2`.

The compiled operators are absent from that wheel: rotated boxes and deformable convolution raise
an ImportError when they are used, not when they are imported. COCO evaluation falls back to
pycocotools. Whoever needs the operators builds Detectron2 from its repository.

    python tools/install_detectron2.py                    # install, unless there is one already
    python tools/install_detectron2.py --wheel-dir wheels # only write the wheel into a folder

torch and torchvision come first; they are not requirements of the wheel, so that installing it
never replaces them. Standard library only.
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SDIST_NAME = "pb1-detectron2"
VERSION = "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# As in Detectron2's own setup.py today. Neither torch nor torchvision: theirs does not name them
# either, and a requirement could replace the build that fits the machine.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
)

# Projects that Detectron2's setup.py installs below detectron2.projects.
PROJECTS = {
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}


class InstallError(Exception):
    """Something that the person running this program has to know; its text is the whole message."""


class Mend(NamedTuple):
    """A named change of text in one file.

    Attributes:
        file (str): path inside the sdist.
        what (str): what is changed; together with `file` it names the mend.
        why (str): what breaks, or warns, without it.
        old (str): the text that is replaced.
        new (str): the text that takes its place.
        count (int): how often `old` occurs in the file; any other number is an error.
    """

    file: str
    what: str
    why: str
    old: str
    new: str
    count: int = 1


ABSENT_PY = '''\
"""Stand-ins for what this pure-Python build of Detectron2 lacks."""


class Absent:
    """
    Takes the place of a module, class or function that is not there: importing it works,
    calling it or reading an attribute of it raises an ImportError.

    Args:
        what (str): the full name of what is absent.
        why (str): why it is absent, and what helps.
    """

    def __init__(self, what, why):
        self._what = what
        self._why = why

    def __call__(self, *args, **kwargs):
        raise ImportError(f"{self._what} is not available: {self._why}")

    def __getattr__(self, name):
        if name.startswith("__"):  # asked by Python's own machinery, e.g. copy and inspect
            raise AttributeError(name)
        raise ImportError(f"{self._what}.{name} is not available: {self._why}")


_C = Absent(
    "detectron2._C",
    "this is a pure-Python build of Detectron2, without the compiled operators that rotated "
    "boxes and deformable convolution need. Build Detectron2 from its repository to use them.",
)
'''

ADDED_FILES = {"detectron2/utils/absent.py": ABSENT_PY}

_NO_OPS = "The compiled operators are absent; importing this file must work all the same."
_NUMPY = "NumPy 1.24 removed its aliases of Python's own types."
_SCHEDULER = (
    "torch's schedulers derive from LRScheduler since 2.0; _LRScheduler is a subclass of it, so "
    "a plain torch scheduler was taken for none and its state was not saved."
)
_LAUNCH = "It refused to start several processes on a machine without a GPU."
_AMP = "torch has deprecated torch.cuda.amp in favour of torch.amp."
_MESHGRID = "torch wants the indexing spelled out, and warned at every model's first batch."
_CAFFE2 = "PyTorch has removed caffe2; the rest of detectron2.export does not need it."


def _compiled(file: str) -> Mend:
    return Mend(
        file,
        "compiled operators",
        _NO_OPS,
        "from detectron2 import _C\n",
        "from detectron2.utils.absent import _C\n",
    )


def _needs_operators(file: str, name: str, line: str) -> Mend:
    return Mend(
        file,
        name,
        "Say at once that it needs the compiled operators, not at the first batch on a GPU.",
        line,
        f"{line}        _C.{name}  # raises: it needs the compiled operators\n",
    )


def _numpy_alias(file: str, name: str, count: int, end: str = ")") -> Mend:
    # `end` is the text behind the name, to tell np.int from np.int64.
    return Mend(file, f"np.{name}", _NUMPY, f"np.{name}{end}", f"{name}{end}", count)


MENDS = (
    # compiled operators
    _compiled("detectron2/layers/deform_conv.py"),
    _compiled("detectron2/layers/roi_align_rotated.py"),
    _compiled("detectron2/layers/rotated_boxes.py"),
    _compiled("detectron2/evaluation/fast_eval_api.py"),
    Mend(
        "detectron2/evaluation/fast_eval_api.py",
        "COCOeval_opt",
        "Without the operators it could evaluate nothing; pycocotools' COCOeval gives the same "
        "figures, also to code that imports COCOeval_opt by name.",
        """\
        logger.info("COCOeval_opt.accumulate() finished in {:0.2f} seconds.".format(toc - tic))
""",
        """\
        logger.info("COCOeval_opt.accumulate() finished in {:0.2f} seconds.".format(toc - tic))


# The class above needs the compiled operators, which this build lacks.
COCOeval_opt = COCOeval
""",
    ),
    Mend(
        "detectron2/evaluation/coco_evaluation.py",
        "fall back to the official COCO API",
        "Say which implementation is used, as Detectron2's main does.",
        """\
        self._use_fast_impl = use_fast_impl
""",
        """\
        if use_fast_impl and (COCOeval_opt is COCOeval):
            self._logger.info("Fast COCO eval is not built. Falling back to official COCO eval.")
            use_fast_impl = False
        self._use_fast_impl = use_fast_impl
""",
    ),
    Mend(
        "detectron2/layers/nms.py",
        "import of the compiled operators",
        _NO_OPS,
        "from torchvision.ops import nms  # BC-compat\n",
        """\
from torchvision.ops import nms  # BC-compat

from detectron2.utils.absent import _C
""",
    ),
    Mend(
        "detectron2/layers/nms.py",
        "nms_rotated",
        _NO_OPS,
        "torch.ops.detectron2.nms_rotated(",
        "_C.nms_rotated(",
    ),
    _needs_operators(
        "detectron2/layers/deform_conv.py",
        "DeformConv",
        "        super(DeformConv, self).__init__()\n",
    ),
    _needs_operators(
        "detectron2/layers/deform_conv.py",
        "ModulatedDeformConv",
        "        super(ModulatedDeformConv, self).__init__()\n",
    ),
    _needs_operators(
        "detectron2/layers/deform_conv.py",
        "deform_conv",
        "        ctx.stride = _pair(stride)\n",
    ),
    _needs_operators(
        "detectron2/layers/deform_conv.py",
        "modulated_deform_conv",
        "        ctx.stride = stride\n",
    ),
    _needs_operators(
        "detectron2/layers/roi_align_rotated.py",
        "ROIAlignRotated",
        "        super(ROIAlignRotated, self).__init__()\n",
    ),
    # NumPy
    _numpy_alias("detectron2/data/build.py", "int", 2, end=""),
    _numpy_alias("detectron2/data/datasets/pascal_voc.py", "str", 1),
    _numpy_alias("detectron2/evaluation/pascal_voc_evaluation.py", "bool", 2),
    _numpy_alias("detectron2/evaluation/sem_seg_evaluation.py", "int", 2),
    _numpy_alias("detectron2/evaluation/sem_seg_evaluation.py", "float", 5),
    _numpy_alias("detectron2/structures/masks.py", "bool", 3),
    _numpy_alias("detectron2/utils/video_visualizer.py", "bool", 1),
    _numpy_alias("detectron2/utils/visualizer.py", "bool", 3),
    # Pillow
    Mend(
        "detectron2/data/transforms/transform.py",
        "Image.LINEAR",
        "Pillow 10 removed the alias of BILINEAR.",
        "interp=Image.LINEAR",
        "interp=Image.BILINEAR",
    ),
    # setuptools
    Mend(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources",
        "setuptools 81 removed pkg_resources.",
        "import pkg_resources\n",
        "",
    ),
    Mend(
        "detectron2/model_zoo/model_zoo.py",
        "path of the configs",
        "setuptools 81 removed pkg_resources; the configs lie beside this file.",
        """\
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
""",
        """\
    cfg_file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)
""",
    ),
    # Python
    Mend(
        "detectron2/data/common.py",
        "random.sample of a set",
        "Python 3.11 samples from sequences only.",
        "self._rng.sample(self._fallback_candidates, k=1)[0]",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)[0]",
    ),
    # optional packages
    Mend(
        "projects/Panoptic-DeepLab/panoptic_deeplab/dataset_mapper.py",
        "panopticapi",
        "It is in no package index; only the dataset mapper needs it, not the model.",
        "from panopticapi.utils import rgb2id\n",
        "",
    ),
    Mend(
        "projects/Panoptic-DeepLab/panoptic_deeplab/dataset_mapper.py",
        "stand-in for panopticapi",
        "It is in no package index; only the dataset mapper needs it, not the model.",
        """\
from .target_generator import PanopticDeepLabTargetGenerator
""",
        """\
from .target_generator import PanopticDeepLabTargetGenerator

try:
    from panopticapi.utils import rgb2id
except ImportError:
    from detectron2.utils.absent import Absent

    rgb2id = Absent("panopticapi.utils.rgb2id", "panopticapi is not installed.")
""",
    ),
    # caffe2
    Mend(
        "detectron2/export/__init__.py",
        "caffe2",
        _CAFFE2,
        "from .api import *\n",
        """\
from detectron2.utils.absent import Absent as _Absent

""",
    ),
    Mend(
        "detectron2/export/__init__.py",
        "names that need caffe2",
        _CAFFE2,
        """\
from .torchscript import scripting_with_instances, dump_torchscript_IR
""",
        """\
from .torchscript import scripting_with_instances, dump_torchscript_IR

_CAFFE2 = "it needs caffe2, which PyTorch has removed."
Caffe2Model = _Absent("detectron2.export.Caffe2Model", _CAFFE2)
Caffe2Tracer = _Absent("detectron2.export.Caffe2Tracer", _CAFFE2)
export_caffe2_model = _Absent("detectron2.export.export_caffe2_model", _CAFFE2)
export_onnx_model = _Absent("detectron2.export.export_onnx_model", _CAFFE2)


def add_export_config(cfg):
    \"\"\"
    Return `cfg` as it is: the options that this added were for caffe2 alone.
    \"\"\"
    return cfg

""",
    ),
    # processes
    Mend(
        "detectron2/engine/launch.py",
        "processes without a GPU",
        _LAUNCH,
        """\
    assert torch.cuda.is_available(), "cuda is not available. Please check your installation."
""",
        """\
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        assert num_gpus_per_machine <= torch.cuda.device_count()
""",
    ),
    Mend(
        "detectron2/engine/launch.py",
        "backend without a GPU",
        _LAUNCH,
        """\
            backend="NCCL",
""",
        """\
            backend="NCCL" if has_gpu else "GLOO",
""",
    ),
    Mend(
        "detectron2/engine/launch.py",
        "device of a process",
        _LAUNCH,
        """\
    assert num_gpus_per_machine <= torch.cuda.device_count()
    torch.cuda.set_device(local_rank)
""",
        """\
    if has_gpu:
        torch.cuda.set_device(local_rank)
""",
    ),
    Mend(
        "detectron2/engine/launch.py",
        "end of a process",
        "The threads of gloo, left to the end of the interpreter, abort a process now and then.",
        """\
    comm.synchronize()

    main_func(*args)
""",
        """\
    comm.synchronize()

    main_func(*args)
    if not has_gpu and dist.is_initialized():
        dist.destroy_process_group()
""",
    ),
    Mend(
        "detectron2/engine/defaults.py",
        "device of a distributed model",
        "DistributedDataParallel takes no device_ids for a model on the CPU.",
        """\
    if "device_ids" not in kwargs:
""",
        """\
    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:
""",
    ),
    Mend(
        "detectron2/utils/comm.py",
        "bytes to tensor",
        "torch has deprecated the typed storages.",
        """\
    storage = torch.ByteStorage.from_buffer(buffer)
    tensor = torch.ByteTensor(storage).to(device=device)
""",
        """\
    tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(device=device)
""",
    ),
    # torch
    Mend(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid",
        _MESHGRID,
        "torch.meshgrid(shifts_y, shifts_x)",
        """torch.meshgrid(shifts_y, shifts_x, indexing="ij")""",
    ),
    Mend(
        "projects/Panoptic-DeepLab/panoptic_deeplab/post_processing.py",
        "torch.meshgrid",
        _MESHGRID,
        """\
        torch.arange(width, dtype=offsets.dtype, device=offsets.device),
    )
""",
        """\
        torch.arange(width, dtype=offsets.dtype, device=offsets.device),
        indexing="ij",
    )
""",
    ),
    Mend(
        "detectron2/engine/hooks.py",
        "base class of the schedulers",
        _SCHEDULER,
        "isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler)",
        "isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler)",
        2,
    ),
    Mend(
        "detectron2/engine/train_loop.py",
        "GradScaler",
        _AMP,
        """\
            from torch.cuda.amp import GradScaler

            grad_scaler = GradScaler()
""",
        """\
            from torch.amp import GradScaler

            grad_scaler = GradScaler("cuda")
""",
    ),
    Mend(
        "detectron2/engine/train_loop.py",
        "import of autocast",
        _AMP,
        "from torch.cuda.amp import autocast\n",
        "from torch.amp import autocast\n",
    ),
    Mend(
        "detectron2/engine/train_loop.py",
        "autocast",
        _AMP,
        "        with autocast():\n",
        """        with autocast("cuda"):\n""",
    ),
    # resuming
    Mend(
        "detectron2/engine/defaults.py",
        "state of the optimizer",
        "v0.6 lost it: a run that resumed began with an empty momentum. As Detectron2's main.",
        """\
        self._trainer.run_step()

""",
        """\
        self._trainer.run_step()

    def state_dict(self):
        ret = super().state_dict()
        ret["_trainer"] = self._trainer.state_dict()
        return ret

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

""",
    ),
)


def find_detectron2() -> str | None:
    """Look for a Detectron2 that can be imported.

    Returns:
        str or None: its version and folder in words; None if there is none at all.

    Raises:
        InstallError: one is there, but importing it fails.
    """
    if importlib.util.find_spec("detectron2") is None:
        return None
    try:
        import detectron2

        return f"detectron2 {detectron2.__version__} at {Path(detectron2.__file__).parent}"
    except Exception as e:
        raise InstallError(
            f"detectron2 is there, but `import detectron2` fails ({type(e).__name__}: {e}); mend "
            "or uninstall it first"
        ) from e


def require_torch() -> None:
    """
    Raises:
        InstallError: torch or torchvision is not installed.
    """
    missing = [x for x in ("torch", "torchvision") if importlib.util.find_spec(x) is None]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} not found: install torch and torchvision first"
        )


def run_pip(*args: str) -> bool:
    """Run pip in this interpreter's environment; its output goes to the terminal.

    Returns:
        bool: whether pip succeeded.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    return subprocess.run(command).returncode == 0


def download_sdist(folder: Path) -> Path:
    """Download the sdist with pip, which checks the hash before it runs any of its code.

    pip 26.3 declines it, as the sdist names a URL among its optional requirements.

    Raises:
        InstallError: pip does not deliver it.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST_NAME}=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
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
        raise InstallError(
            f"pip did not download {SDIST_NAME} {VERSION}, see its messages above; pip 26.3 and "
            "newer decline it: use an older one, or give a file at hand with --sdist"
        )
    return found[0]


def read_sdist(path: Path) -> dict[str, bytes]:
    """Read the sdist's files, without unpacking or running anything.

    Args:
        path (Path): the `.tar.gz`.

    Returns:
        dict[str, bytes]: content by path below the archive's top folder.

    Raises:
        InstallError: it cannot be read, or is not the file that the mends were made for.
    """
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


def apply_mends(files: dict[str, bytes], mends: Iterable[Mend]) -> dict[str, bytes]:
    """Apply mends, in order.

    Args:
        files (dict[str, bytes]): content by path; left as it is.
        mends (iterable[Mend]): what to change.

    Returns:
        dict[str, bytes]: `files` with the changes.

    Raises:
        InstallError: a mend's file is missing, or does not hold its text as often as it says.
    """
    files = dict(files)
    for mend in mends:
        name = f"mend '{mend.what}' of {mend.file}"
        if mend.file not in files:
            raise InstallError(f"{name}: there is no such file in the source")
        text = files[mend.file].decode("utf-8")
        found = text.count(mend.old)
        if found != mend.count:
            raise InstallError(f"{name}: expected its text {mend.count} times, found {found}")
        files[mend.file] = text.replace(mend.old, mend.new).encode("utf-8")
    return files


def package_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """Pick what goes into the wheel: the package with the zoo's configs, and the projects.

    Args:
        files (dict[str, bytes]): content by path in the sdist.

    Returns:
        dict[str, bytes]: content by path in the wheel.
    """
    folders = {"detectron2/": "detectron2/", **PROJECTS}
    packaged = {
        target + path[len(source) :]: content
        for path, content in files.items()
        for source, target in folders.items()
        if path.startswith(source)
    }
    packaged.update((path, text.encode("utf-8")) for path, text in ADDED_FILES.items())
    return packaged


def dist_info(files: dict[str, bytes]) -> dict[str, bytes]:
    """The wheel's metadata, save RECORD; the mends are listed in its description."""
    mends = "\n".join(f"- {m.file}, {m.what}: {m.why}" for m in MENDS)
    added = "\n".join(f"- {path}: added" for path in ADDED_FILES)
    metadata = "\n".join(
        [
            "Metadata-Version: 2.1",
            "Name: detectron2",
            f"Version: {VERSION}",
            "Summary: Detectron2 0.6 as a pure-Python package, mended for today's dependencies",
            "Author: FAIR",
            "License: Apache-2.0",
            "License-File: LICENSE",
            "Requires-Python: >=3.10",
            *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
            "Description-Content-Type: text/markdown",
            "",
            f"Detectron2 {VERSION} without its compiled operators. Changed from the original:",
            "",
            mends,
            added,
            "",
        ]
    )
    wheel = "\n".join(
        [
            "Wheel-Version: 1.0",
            "Generator: install_detectron2",
            "Root-Is-Purelib: true",
            "Tag: py3-none-any",
            "",
        ]
    )
    return {
        "METADATA": metadata.encode("utf-8"),
        "WHEEL": wheel.encode("utf-8"),
        "LICENSE": files["LICENSE"],
        "top_level.txt": b"detectron2\n",
    }


def write_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write the wheel, whole or not at all; the same files give the same bytes.

    Args:
        files (dict[str, bytes]): the mended sdist.
        folder (Path): where the wheel is put; made if it is not there.

    Returns:
        Path: the wheel.

    Raises:
        InstallError: it cannot be written.
    """
    info = f"detectron2-{VERSION}.dist-info"
    content = dict(sorted(package_files(files).items()))
    content.update((f"{info}/{name}", data) for name, data in dist_info(files).items())
    record = []
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record.append(f"{path},sha256={digest},{len(data)}\n")
    record.append(f"{info}/RECORD,,\n")
    content[f"{info}/RECORD"] = "".join(record).encode("utf-8")

    target = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    partial = folder / f"{target.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                for path, data in content.items():
                    entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
                    entry.external_attr = 0o644 << 16
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, data)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as e:
        raise InstallError(f"cannot write {target}: {e.strerror}") from e
    return target


def build_wheel(folder: Path, sdist: Path | None = None) -> Path:
    """Make the wheel from the sdist.

    Args:
        folder (Path): where the wheel is put.
        sdist (Path or None): the sdist's file; None: it is downloaded.

    Returns:
        Path: the wheel.

    Raises:
        InstallError: the sdist cannot be had or is another one, a mend does not fit, or the
            wheel cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if sdist is None:
            require_torch()
            sdist = download_sdist(Path(scratch))
        files = read_sdist(sdist)
    return write_wheel(apply_mends(files, MENDS), folder)


def install(sdist: Path | None = None) -> None:
    """Install Detectron2 unless there is one, and say which one there is.

    Args:
        sdist (Path or None): see `build_wheel`.

    Raises:
        InstallError: see `build_wheel`; or pip, or importing the result, fails.
    """
    found = find_detectron2()
    if found is not None:
        print(f"Found {found}; nothing to do.")
        return
    require_torch()
    # The visualizer needs cv2, which comes from one of several packages; a second one would
    # overwrite the first, so that the wheel requires none.
    opencv = [] if importlib.util.find_spec("cv2") else ["opencv-python-headless"]
    with tempfile.TemporaryDirectory() as scratch:
        if not run_pip("install", str(build_wheel(Path(scratch), sdist)), *opencv):
            raise InstallError("pip did not install the wheel, see its messages above")
    importlib.invalidate_caches()
    print(
        f"Installed {find_detectron2()}, pure Python: no rotated boxes, no deformable convolution."
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--wheel-dir",
        type=Path,
        metavar="DIR",
        help="only build the wheel and put it into DIR, e.g. to carry it to another machine",
    )
    parser.add_argument(
        "--sdist",
        type=Path,
        metavar="FILE",
        help=f"use this {SDIST_NAME} {VERSION} .tar.gz instead of downloading it",
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
