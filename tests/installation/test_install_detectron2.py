"""The installer's own behaviour, then what an installed Detectron2 has to be able to do.

The second half holds for any Detectron2, built or mended; what only the mended wheel promises is
marked so.
"""

import base64
import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.paths import ROOT

PROGRAM = ROOT / "tools" / "install_detectron2.py"

MENDED = importlib.util.find_spec("detectron2.utils.absent") is not None

mended_only = pytest.mark.skipif(not MENDED, reason="this Detectron2 is not the mended wheel")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("install_detectron2", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_program(*args, python_path=None):
    """Run the installer as a person does, with pip cut off from every index."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    environment.pop("PYTHONPATH", None)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_python(*args):
    """Run Python in a fresh interpreter that sees no GPU; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, args)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def fake_package(folder, text):
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text(text)
    return folder


# The program


def test_an_importable_detectron2_is_named_and_left_alone(tmp_path):
    fake_package(tmp_path, '__version__ = "9.8"\n')
    result = run_program(python_path=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "detectron2 9.8" in result.stdout
    assert str(tmp_path / "detectron2") in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detectron2"]


def test_a_broken_detectron2_is_reported_not_overwritten(tmp_path):
    fake_package(tmp_path, "import a_module_that_is_not_there\n")
    result = run_program(python_path=tmp_path)
    assert result.returncode == 1
    assert "a_module_that_is_not_there" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_another_sdist_is_refused(tmp_path):
    sdist = tmp_path / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        tar.add(PROGRAM, "pb1-detectron2-0.6/setup.py")
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    result = run_program("--sdist", sdist, "--wheel-dir", tmp_path / "wheels")
    assert result.returncode == 1
    assert digest in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "wheels").exists()


def test_a_missing_sdist_is_one_line(tmp_path):
    result = run_program("--sdist", tmp_path / "none.tar.gz", "--wheel-dir", tmp_path)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "none.tar.gz" in result.stderr


def test_a_failed_download_is_an_error_without_a_traceback(tmp_path):
    result = run_program("--wheel-dir", tmp_path / "wheels")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("install_detectron2: pip did not download")
    assert not (tmp_path / "wheels").exists()


def test_torch_comes_first(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tool, "run_pip", lambda *args: pytest.fail("pip was run"))
    assert tool.main([]) == 1
    assert "install torch and torchvision first" in capsys.readouterr().err


# The mends


def test_mends_are_named_and_explained(tool):
    names = [(mend.file, mend.what) for mend in tool.MENDS]
    assert len(set(names)) == len(names)
    assert all(mend.why and mend.old and mend.count > 0 for mend in tool.MENDS)


def mend_of(tool, **changes):
    mend = tool.Mend("detectron2/a.py", "np.bool", "gone", "np.bool)", "bool)", 2)
    return mend._replace(**changes)


def test_a_mend_replaces_its_text_and_leaves_the_source_alone(tool):
    files = {"detectron2/a.py": b"x(np.bool) y(np.bool) np.bool_", "LICENSE": b"free"}
    mended = tool.apply_mends(files, [mend_of(tool)])
    assert mended == {"detectron2/a.py": b"x(bool) y(bool) np.bool_", "LICENSE": b"free"}
    assert files["detectron2/a.py"] == b"x(np.bool) y(np.bool) np.bool_"


@pytest.mark.parametrize(
    "content", [b"nothing of the kind", b"np.bool)", b"np.bool) np.bool) np.bool)"]
)
def test_a_mend_whose_text_is_not_there_is_an_error_that_names_it(tool, content):
    with pytest.raises(tool.InstallError, match=r"np\.bool.*detectron2/a\.py"):
        tool.apply_mends({"detectron2/a.py": content}, [mend_of(tool)])


def test_a_mend_whose_file_is_not_there_is_an_error_that_names_it(tool):
    with pytest.raises(tool.InstallError, match=r"np\.bool.*detectron2/b\.py"):
        tool.apply_mends({"detectron2/a.py": b""}, [mend_of(tool, file="detectron2/b.py")])


def test_a_source_that_was_tampered_with_makes_no_wheel(tool, tmp_path, monkeypatch):
    """As with a file of another release: every mend is sought, and the first miss ends it."""
    sdist = tmp_path / "sdist.tar.gz"
    source = tmp_path / "source"
    source.mkdir()
    (source / "LICENSE").write_text("free")
    with tarfile.open(sdist, "w:gz") as tar:
        tar.add(source, "pb1-detectron2-0.6")
    monkeypatch.setattr(tool, "SDIST_SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    assert tool.read_sdist(sdist) == {"LICENSE": b"free"}
    with pytest.raises(tool.InstallError, match=tool.MENDS[0].what):
        tool.build_wheel(tmp_path / "wheels", sdist)
    assert not (tmp_path / "wheels").exists()


# The wheel


SOURCE = {
    "LICENSE": b"free",
    "setup.py": b"raise SystemExit",
    "detectron2/__init__.py": b'__version__ = "0.6"\n',
    "detectron2/model_zoo/configs/COCO-Detection/a.yaml": b"VERSION: 2\n",
    "projects/PointRend/point_rend/__init__.py": b"",
}


def test_the_wheel_is_pure_python_and_complete(tool, tmp_path):
    wheel = tool.write_wheel(SOURCE, tmp_path / "wheels")
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert content["detectron2/__init__.py"] == SOURCE["detectron2/__init__.py"]
    assert "detectron2/model_zoo/configs/COCO-Detection/a.yaml" in content
    assert "detectron2/projects/point_rend/__init__.py" in content
    assert "setup.py" not in content

    info = "detectron2-0.6.dist-info"
    metadata = content[f"{info}/METADATA"].decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert "Requires-Dist: fvcore>=0.1.5,<0.1.6" in required
    assert not any("torch" in line or "opencv" in line for line in required)
    assert "Root-Is-Purelib: true" in content[f"{info}/WHEEL"].decode()

    record = dict(line.split(",", 1) for line in content[f"{info}/RECORD"].decode().splitlines())
    assert record.pop(f"{info}/RECORD") == ","
    assert record.keys() == content.keys() - {f"{info}/RECORD"}
    for name, entry in record.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).decode()
        assert entry == f"sha256={digest.rstrip('=')},{len(content[name])}"


def test_the_same_source_gives_the_same_wheel(tool, tmp_path):
    first = tool.write_wheel(SOURCE, tmp_path / "a")
    second = tool.write_wheel(dict(reversed(SOURCE.items())), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_a_wheel_that_cannot_be_written_leaves_nothing(tool, tmp_path, monkeypatch):
    def full(self, entry, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tool.zipfile.ZipFile, "writestr", full)
    with pytest.raises(tool.InstallError, match=os.strerror(errno.ENOSPC)):
        tool.write_wheel(SOURCE, tmp_path)
    assert list(tmp_path.iterdir()) == []


# An installed Detectron2


# Modules that need one of these say so when they are imported; nothing else may fail.
OPTIONAL = {"caffe2", "onnx", "panopticapi", "scipy", "fairscale", "timm", "mmcv"}

IMPORT_ALL = """
import importlib, json, pkgutil
import detectron2
failed = {}
names = ["detectron2.projects." + x for x in ("point_rend", "deeplab", "panoptic_deeplab")]
walk = pkgutil.walk_packages(detectron2.__path__, "detectron2.", onerror=lambda name: None)
count = 0
for name in names + [module.name for module in walk]:
    count += 1
    try:
        importlib.import_module(name)
    except Exception as e:
        failed[name] = [type(e).__name__, str(e), getattr(e, "name", None)]
print(json.dumps([count, failed]))
"""


def test_every_module_imports_on_its_own():
    count, failed = json.loads(run_python("-c", IMPORT_ALL).splitlines()[-1])
    assert count > 130
    unexpected = {
        module: error
        for module, error in failed.items()
        if error[0] != "ModuleNotFoundError" or error[2].partition(".")[0] not in OPTIONAL
    }
    assert unexpected == {}
    if MENDED:
        assert {name.rpartition(".")[0] for name in failed} <= {"detectron2.export"}


def test_the_zoo_has_its_configs():
    from detectron2 import model_zoo
    from detectron2.model_zoo.model_zoo import _ModelZooUrls

    for name in _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX:
        candidates = [name + ".yaml", name + ".py"]
        assert any(_is_config(model_zoo, candidate) for candidate in candidates), name
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    lazy = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
    assert lazy.model.num_classes == 80
    with pytest.raises(RuntimeError, match="nothing.yaml"):
        model_zoo.get_config_file("nothing.yaml")


def _is_config(model_zoo, name):
    try:
        return Path(model_zoo.get_config_file(name)).is_file()
    except RuntimeError:
        return False


def rotated_boxes():
    return torch.tensor([[5.0, 5.0, 4.0, 2.0, 30.0]])


def use_pairwise_iou():
    from detectron2.structures import RotatedBoxes, pairwise_iou_rotated

    pairwise_iou_rotated(RotatedBoxes(rotated_boxes()), RotatedBoxes(rotated_boxes()))


def use_nms():
    from detectron2.layers import nms_rotated

    nms_rotated(rotated_boxes(), torch.ones(1), 0.5)


def use_batched_nms():
    from detectron2.layers import batched_nms_rotated

    batched_nms_rotated(rotated_boxes(), torch.ones(1), torch.zeros(1), 0.5)


def use_roi_align():
    from detectron2.layers import ROIAlignRotated

    rois = torch.cat([torch.zeros(1, 1), rotated_boxes()], dim=1)
    ROIAlignRotated((2, 2), 1.0, 2)(torch.ones(1, 1, 8, 8), rois)


def use_deform_conv():
    from detectron2.layers import DeformConv

    DeformConv(1, 1, 3, padding=1)(torch.ones(1, 1, 8, 8), torch.zeros(1, 18, 8, 8))


def use_modulated_deform_conv():
    from detectron2.layers import ModulatedDeformConv

    ModulatedDeformConv(1, 1, 3, padding=1)


def use_deformable_resnet():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    build_backbone(cfg)


@mended_only
@pytest.mark.parametrize(
    "use",
    [
        use_pairwise_iou,
        use_nms,
        use_batched_nms,
        use_roi_align,
        use_deform_conv,
        use_modulated_deform_conv,
        use_deformable_resnet,
    ],
)
def test_what_needs_compiled_operators_says_so_when_used(use):
    with pytest.raises(ImportError, match="compiled operators"):
        use()


@mended_only
@pytest.mark.parametrize(
    "name", ["Caffe2Tracer", "Caffe2Model", "export_caffe2_model", "export_onnx_model"]
)
def test_what_needs_caffe2_says_so_when_used(name):
    from detectron2 import export

    with pytest.raises(ImportError, match=f"{name}.*caffe2"):
        getattr(export, name)(None, None, None)
    with pytest.raises(ImportError, match=f"{name}.*caffe2"):
        getattr(export, name).load_protobuf("folder")


def test_the_rest_of_export_is_there():
    from detectron2.export import TracingAdapter, scripting_with_instances
    from detectron2.structures import Instances

    class Model(torch.nn.Module):
        def forward(self, inputs):
            boxes = Instances((4, 4))
            boxes.scores = inputs[0]["image"].sum(dim=(0, 1))
            return [{"instances": boxes}]

    inputs = [{"image": torch.ones(3, 4, 4)}]
    adapter = TracingAdapter(Model(), inputs, inference_func=None, allow_non_tensor=False)
    assert torch.equal(adapter(torch.ones(3, 4, 4))[0], torch.full((4,), 12.0))
    assert callable(scripting_with_instances)


def sgd():
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    return torch.optim.SGD([parameter], lr=1.0, momentum=0.9)


def test_the_state_of_a_torch_scheduler_is_saved():
    from detectron2.engine import hooks

    optimizer = sgd()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = hooks.LRScheduler(optimizer, scheduler).state_dict()
    assert state["last_epoch"] == 3

    fresh = torch.optim.lr_scheduler.MultiStepLR(sgd(), [2, 4])
    hooks.LRScheduler(fresh.optimizer, fresh).load_state_dict(state)
    assert fresh.last_epoch == 3


def test_a_checkpoint_brings_the_momentum_back(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, hooks

    def trainer():
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = DefaultTrainer.__new__(DefaultTrainer)
        TrainerBase.__init__(trainer)
        trainer._trainer = SimpleTrainer(model, [None], optimizer)
        trainer.iter = 0
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
        trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler)])
        return trainer, model, optimizer, scheduler

    first, model, optimizer, scheduler = trainer()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    first.iter = 7
    DetectionCheckpointer(model, str(tmp_path), trainer=first).save("last", iteration=7)

    second, model, optimizer, scheduler = trainer()
    loaded = DetectionCheckpointer(model, str(tmp_path), trainer=second).resume_or_load("")
    assert loaded["iteration"] == 7
    assert second.iter == 7
    assert scheduler.last_epoch == 1
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momentum) == 2
    assert all(m.abs().sum() > 0 for m in momentum)


@mended_only
def test_mixed_precision_does_not_warn():
    from detectron2.engine import AMPTrainer

    optimizer = sgd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        warnings.simplefilter("error", FutureWarning)
        trainer = AMPTrainer(torch.nn.Linear(1, 1), [None], optimizer)
    assert isinstance(trainer.grad_scaler, torch.amp.GradScaler)


def test_a_dataset_draws_another_item_where_mapping_gives_none():
    from detectron2.data import MapDataset

    even = MapDataset(list(range(10)), lambda x: x if x % 2 == 0 else None)
    drawn = [even[i] for i in range(10)]
    assert all(x % 2 == 0 for x in drawn)
    assert drawn[::2] == [0, 2, 4, 6, 8]
    again = MapDataset(list(range(10)), lambda x: x if x % 2 == 0 else None)
    assert [again[i] for i in range(10)] == drawn


LAUNCH = """
import sys
import torch
from detectron2.engine import launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm

def work(wrap):
    rank = comm.get_rank()
    gathered = comm.all_gather({"rank": rank, "text": "x" * 5000 * rank})
    assert [len(x["text"]) for x in gathered] == [0, 5000]
    on_main = comm.gather(rank)
    assert on_main == ([0, 1] if rank == 0 else [])
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
    assert len(set(comm.all_gather(comm.shared_random_seed()))) == 1
    mean = comm.reduce_dict({"loss": torch.tensor(float(rank))})
    assert rank != 0 or mean["loss"] == 0.5
    assert torch.distributed.get_backend() == "gloo"
    if wrap:
        model = create_ddp_model(torch.nn.Linear(1, 1, bias=False))
        (model(torch.ones(1, 1)) * rank).sum().backward()
        assert model.module.weight.grad.item() == 0.5
    else:  # main leaves it to the end of the interpreter, whose order gloo does not always survive
        torch.distributed.destroy_process_group()

if __name__ == "__main__":
    launch(work, 2, dist_url="auto", args=("wrap" in sys.argv,))
    print("done")
"""


def test_two_processes_work_together_without_a_gpu(tmp_path):
    # A file, so that the processes which it starts can import it.
    program = tmp_path / "launch_two.py"
    program.write_text(LAUNCH)
    # main gives a model on the CPU a GPU's index, which DistributedDataParallel refuses.
    assert run_python(program, "wrap" if MENDED else "").endswith("done\n")


def test_polygons_become_bitmasks():
    from detectron2.structures import BitMasks, PolygonMasks

    square = np.array([2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0])
    masks = BitMasks.from_polygon_masks(PolygonMasks([[square], []]), 8, 8)
    assert masks.tensor.dtype == torch.bool
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [16, 0]
    assert masks.tensor[0, 1:5, 2:6].all()
    assert PolygonMasks([[square], []]).nonempty().tolist() == [True, False]


def test_pictures_are_drawn():
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

    grey = np.full((40, 60, 3), 127, dtype=np.uint8)
    assert np.array_equal(VisImage(grey).get_image(), grey)

    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 30.0]]))
    found.scores = torch.tensor([0.9])
    found.pred_classes = torch.tensor([0])
    found.pred_masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    found.pred_masks[0, 8:28, 8:38] = True
    for mode in ColorMode:
        drawn = Visualizer(grey, scale=1.5, instance_mode=mode).draw_instance_predictions(found)
        image = drawn.get_image()
        assert image.shape == (60, 90, 3)
        assert len(np.unique(image)) > 10


def test_a_panoptic_picture_is_drawn():
    from detectron2.data import Metadata
    from detectron2.utils.visualizer import Visualizer

    metadata = Metadata(thing_classes=["cat"], stuff_classes=["sky"], stuff_colors=[[0, 0, 255]])
    segments = torch.ones(40, 60, dtype=torch.int32)
    segments[10:30, 10:30] = 2
    info = [
        {"id": 1, "category_id": 0, "isthing": False},
        {"id": 2, "category_id": 0, "isthing": True},
    ]
    visualizer = Visualizer(np.full((40, 60, 3), 127, dtype=np.uint8), metadata)
    drawn = visualizer.draw_panoptic_seg(segments, info)
    assert len(np.unique(drawn.get_image())) > 10


def test_images_are_transformed():
    from detectron2.data import transforms as T

    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert T.ExtentTransform((0, 0, 8, 8), (8, 8)).apply_image(image).shape == (8, 8, 3)
    resized = T.ResizeShortestEdge(16, 32).get_transform(image).apply_image(image)
    assert resized.shape == (16, 16, 3)


def test_class_counts_are_printed():
    from detectron2.data.build import print_instances_class_histogram

    annotations = [{"category_id": 0}, {"category_id": 1, "iscrowd": 1}]
    print_instances_class_histogram([{"annotations": annotations}], ["cat", "dog"])


def test_coco_evaluation_runs(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    annotation = {
        "id": 1,
        "image_id": 3,
        "category_id": 9,
        "bbox": [10, 10, 40, 40],
        "area": 1600,
        "iscrowd": 0,
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
    }
    (tmp_path / "coco.json").write_text(
        json.dumps(
            {
                "info": {},
                "images": [{"id": 3, "file_name": "3.jpg", "height": 64, "width": 64}],
                "annotations": [annotation],
                "categories": [{"id": 9, "name": "cat"}],
            }
        )
    )
    name = "test_install_detectron2_coco"
    register_coco_instances(name, {}, str(tmp_path / "coco.json"), str(tmp_path))
    try:
        DatasetCatalog.get(name)  # fills in the metadata
        found = Instances((64, 64))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        found.pred_masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        found.pred_masks[0, 10:50, 10:50] = True
        evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
        evaluator.reset()
        evaluator.process([{"image_id": 3}], [{"instances": found}])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_anchors_keep_their_order():
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[4], offset=0.0)
    (anchors,) = generator([torch.zeros(1, 1, 2, 3)])
    centers = anchors.get_centers()
    assert centers[:, 0].tolist() == [0, 4, 8, 0, 4, 8]
    assert centers[:, 1].tolist() == [0, 0, 0, 4, 4, 4]
