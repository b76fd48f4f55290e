"""Lower bounds only: torch, torchvision and Detectron2 are the user's own and never replaced.

Nor is OpenCV, which comes from one of several packages that overwrite each other: for that reason
there is no extra for LVIS, whose package lvis asks for one of them (pip install --no-deps lvis).

packaging/test_lowest_versions.py tests the bounds, with torch 2.6. timm before 1.0.21 cannot build
some models on torch's meta device, which checks of a config do.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def read_version():
    lines = (HERE / "rsb_d2" / "__init__.py").read_text().splitlines()
    return next(line for line in lines if line.startswith("__version__")).split('"')[1]


class BuildWithFolders(build_py):
    """Puts configs/ and packaging/ into the package of a wheel, where a checkout has neither."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name, package in (("configs", "model_zoo"), ("packaging", "addons/commands")):
                target = Path(self.build_lib) / "rsb_d2" / package / name
                shutil.rmtree(target, ignore_errors=True)  # of an earlier build
                shutil.copytree(HERE / name, target, ignore=shutil.ignore_patterns("__*", "test_*"))


# By what a user wants to do.
EXTRAS = {
    "export": ["onnx>=1.16", "onnxruntime>=1.18"],
    "openvino": ["onnx>=1.16", "openvino>=2026.4"],
    "int8": ["onnx>=1.16", "openvino>=2026.4", "nncf>=3.4"],
    # Names the frames of a video that FFmpeg has repaired, too.
    "video": ["av>=14"],
    # Names in LOGGERS.
    "wandb": ["wandb>=0.31"],
    "mlflow": ["mlflow>=3"],
    "hub": [],  # huggingface_hub is required in any case
    "ray": ["ray[data]>=2.60"],
}

setup(
    name="rsb_d2",
    version=read_version(),
    description="timm's 'ResNet strikes back' backbones for Detectron2",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2110.00476",
        "timm": "https://github.com/huggingface/pytorch-image-models",
        "Detectron2": "https://github.com/facebookresearch/detectron2",
        "Published detectors": "https://github.com/open-mmlab/mmdetection",
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["rsb_d2", "rsb_d2.*"]),
    py_modules=["rsb_d2_cli"],
    entry_points={"console_scripts": ["rsb-d2 = rsb_d2_cli:main"]},
    extras_require={
        **EXTRAS,
        "all": sorted({requirement for group in EXTRAS.values() for requirement in group}),
        "masks": ["shapely>=2.0"],
        "cityscapes": ["cityscapesscripts>=2.2", "shapely>=2.0"],
        # The programs of other people that docs/ecosystem.md is about, in the versions tested.
        # sahi and trackers ask for opencv-python, which overwrites a headless OpenCV: see the
        # Makefile.
        "test": [
            *("hypothesis>=6", "pytest>=8"),
            *("sahi==0.12.8", "supervision==0.31.2", "trackers==2.6.1"),
        ],
    },
    package_data={"rsb_d2.addons.workbench.report": ["page/*"]},
    cmdclass={"build_py": BuildWithFolders},
    install_requires=[
        "timm>=1.0.21",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "hotcoco>=1.3",
        "pycocotools>=2.0.7",
        "huggingface_hub>=0.25",
        "safetensors>=0.4",
        "msgspec>=0.19",
        "orjson>=3.9",
        "matplotlib>=3.6",
        "numpy>=1.24",
        "pillow>=9.1",
        "plotly>=6.0",
        "tqdm>=4.30",
    ],
)
