"""Loading weights into a model: strictly for its backbone, with a report of the rest."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import timm
import torch
from torch import nn

from ..errors import UserError, first
from ..modeling import TimmBackbone, TimmLastStage
from .files import StateDict
from .formats import (
    DETECTOR,
    FORMATS,
    TIMM_CLASSIFIER,
    Format,
    recognize,
)

logger = logging.getLogger(__name__)

# ---- timm's names ----

COUNTER = "num_batches_tracked"


class Match(NamedTuple):
    """Which tensors of a file fit which of a model."""

    fitting: StateDict  # by the model's names
    missing: List[str]  # the model's names
    other_shape: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]]  # name, in file, in model
    unused: List[str]  # the file's names


def architecture(name: str) -> str:
    """timm's name of a model without its tag: ``"resnet50.a1_in1k"`` gives ``"resnet50"``."""
    return name.partition(".")[0]


def model_names(feature_name: str) -> Iterator[str]:
    """Yield possible names in the complete model of a feature net's tensor, the likely ones first.

    timm's feature nets keep a model's names, put ``model.`` or ``body.`` before them, or join the
    first two levels: ``stages.0.blocks.1.norm.weight`` is ``stages_0.blocks.1.norm.weight``.
    """
    yield feature_name
    head, _, rest = feature_name.partition(".")
    if head in ("model", "body"):
        yield rest
    for i, character in enumerate(head):
        if character == "_" and 0 < i < len(head) - 1:
            yield f"{head[:i]}.{head[i + 1 :]}.{rest}"


def model_name(feature_name: str, names: Collection) -> str | None:
    """Return which of ``names`` a feature net's tensor has in the complete model, or ``None``."""
    return next((n for n in model_names(feature_name) if n in names), None)


def match(weights: Mapping, target: Mapping) -> Match:
    """Find each tensor of a feature net among those of a complete model.

    A norm layer's ``num_batches_tracked`` is 0 where ``weights`` has none: older files lack them.
    """
    fitting, missing, other_shape, used = {}, [], [], set()
    for name, tensor in target.items():
        source = model_name(name, weights)
        if source is None:
            if name.endswith(COUNTER):
                fitting[name] = torch.zeros_like(tensor, device="cpu")
            else:
                missing.append(name)
            continue
        used.add(source)
        if weights[source].shape == tensor.shape:
            fitting[name] = weights[source]
        else:
            other_shape.append((name, tuple(weights[source].shape), tuple(tensor.shape)))
    return Match(fitting, missing, other_shape, [n for n in weights if n not in used])


@cache
def complete_model(name: str) -> nn.Module:
    """timm's classification model of this name on the meta device: names and shapes only."""
    with torch.device("meta"):
        return timm.create_model(architecture(name), pretrained=False)


def classifier_names(name: str) -> Tuple[str, ...]:
    """The modules of a timm model that are its classifier, such as ``("fc",)``."""
    names = timm.get_pretrained_cfg_value(name, "classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def foreign_names(unused: Collection, used: Collection, name: str) -> List[str]:
    """Return the tensors of a file that show that it is of another, perhaps a deeper, architecture.

    A file may have a classifier, and layers above the deepest feature. But a tensor next to used
    ones that timm's model does not have at all belongs to the computation of another model.

    Args:
        unused (collection of str): the file's tensors that are not used, by any names.
        used (collection of str): the others, by the names of timm's model or its feature net.
        name (str): timm's name of the model.
    """
    known = complete_model(name).state_dict()
    children = {(model_name(n, known) or n).partition(".")[0] for n in used}
    classifiers = tuple(f"{c}." for c in classifier_names(name))
    return [
        n
        for n in without_spare_counters(unused)
        if not model_name(n, known)
        and n.partition(".")[0] in children
        and not n.startswith(classifiers)
    ]


def without_spare_counters(unused: Collection) -> List[str]:
    """Unused tensors but for the counters of norm layers that are used: a FrozenBN has none."""
    names = set(unused)
    return [
        n for n in unused if not n.endswith(COUNTER) or n[: -len(COUNTER)] + "running_mean" in names
    ]


def updated_by_timm(weights: StateDict, name: str) -> StateDict | None:
    """Rename weights of an older release, or of a model's first publication, to today's names.

    timm does so while it loads them into a complete model; no tensor may be missing. None if timm
    cannot load them either.
    """
    num_classes = _num_outputs(weights, name)
    try:
        # timm loads a few architectures loosely by default: tensors that it does not find would be
        # random.
        with torch.random.fork_rng(devices=[]):  # for initial values that are all overwritten
            model = timm.create_model(
                name,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": dict(weights), "num_classes": num_classes},
                pretrained_strict=True,
                num_classes=num_classes,
            )
    except Exception:  # timm's conversions fail in many ways on unknown weights
        return None
    return model.state_dict()


def _num_outputs(weights: StateDict, name: str) -> int:
    for classifier in classifier_names(name):
        if f"{classifier}.weight" in weights:
            return len(weights[f"{classifier}.weight"])
    return timm.get_pretrained_cfg_value(name, "num_classes")


def add_missing_counters(weights: Dict[str, torch.Tensor]) -> StateDict:
    """Add the ``num_batches_tracked`` of 0 that older files lack next to ``running_mean``."""
    complete = {}
    for name, tensor in weights.items():
        complete[name] = tensor
        if name.endswith("running_mean"):
            counter = name[: -len("running_mean")] + COUNTER
            if counter not in weights:
                complete[counter] = torch.zeros((), dtype=torch.long)
    return complete


# ---- loading ----

Shape = Tuple[int, ...]

# Only in some checkpoints, and made from the config anyway.
_NOT_WEIGHTS = ("pixel_mean", "pixel_std")
_CELL_ANCHORS = "anchor_generator.cell_anchors"

_EXAMPLES = 3

# Where a detector's timm network is: below an FPN, without one, and, of C4, its last stage.
_BEFORE_BODY = ("backbone.bottom_up.", "backbone.", "roi_heads.res5.")


@dataclass
class LoadReport:
    """The result of :func:`load_weights`.

    Args:
        source (str): the path as the user wrote it.
        path (str): the local file.
        format_name (str): as in :data:`FORMATS`.
        loaded (list[str]): the model's tensors that were loaded.
        backbone (tuple[str, ...]): prefixes of the backbone's tensors, one for each part of it.
        initial (list[str]): the model's tensors that keep their initial value.
        other_shape (list): those that the file has in another shape: the name, the shape in
            the file, the shape in the model.
        unused (list[str]): the file's tensors that the model does not have.
        classes (tuple[int, int] or None): the numbers of classes of the file and the model, if
            they differ.
        differs (list[str]): config lines without which the model computes something else with
            these weights than where they come from.
    """

    source: str
    path: str
    format_name: str
    backbone: Tuple[str, ...]
    loaded: List[str] = field(default_factory=list)
    initial: List[str] = field(default_factory=list)
    other_shape: List[Tuple[str, Shape, Shape]] = field(default_factory=list)
    unused: List[str] = field(default_factory=list)
    classes: Tuple[int, int] | None = None
    differs: List[str] = field(default_factory=list)

    def __str__(self) -> str:
        of_backbone = sum(name.startswith(self.backbone) for name in self.loaded)
        others = [name for name in self.loaded if not name.startswith(self.backbone)]
        lines = [
            f"Weights from {self.source}",
            f"  file:    {self.path}",
            f"  format:  {self.format_name}",
            f"  loaded:  the complete backbone, {of_backbone} tensors; others: {_by_part(others)}",
            f"  left at their initial values: {_by_part(self.initial)}",
            f"  unused in the file: {_by_part(self.unused)}",
        ]
        if self.classes:
            lines.append(
                f"  the file has {self.classes[0]} classes and the model {self.classes[1]}, so its "
                "classifier is left at its initial values:"
            )
        elif self.other_shape:
            lines.append("  left at their initial values because of another shape:")
        lines += [f"    {_shapes(*entry)}" for entry in self.other_shape]
        if self.differs:
            lines.append("  the model computes something else than was trained there; write")
            lines += [f"    {line}" for line in self.differs]
        return "\n".join(lines)


def load_weights(
    model: nn.Module, weights: StateDict, source: str, path: str = "", complete: bool = False
) -> LoadReport:
    """Load a state dict of any known format into a model with a timm backbone.

    Args:
        model (nn.Module): with a :class:`TimmBackbone` in it; changed in place.
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it.
        source (str): its name in messages.
        path (str): the local file, for the report.
        complete (bool): the complete model must be in it, as when a run is resumed; otherwise
            only the backbone.

    Returns:
        LoadReport

    Raises:
        UserError: if a parameter or buffer that must be loaded is missing or has another shape,
            or if the file is of another architecture; the model is as it was then.
    """
    _, backbone = find_backbone(model)
    prefixes, body_names, body = timm_tensors(model)
    format = recognize(weights)
    try:
        converted = format.convert(weights)
    except UserError as e:
        raise UserError(f"{source}: {e}") from e

    if format.holds == DETECTOR:
        backbone_weights, others = split_detector(converted)
    else:
        backbone_weights, others = converted, {}
    body_match = match_backbone(backbone_weights, body, backbone.name, format)
    check_backbone(body_match, len(body), backbone.name, source, format)

    of_body = set(body_names.values())
    rest = {n: t for n, t in model.state_dict().items() if n not in of_body}
    rest_match = _match_by_name(others, rest)
    report = LoadReport(source, path or source, format.name, prefixes)
    report.loaded = [body_names[n] for n in body_match.fitting] + list(rest_match.fitting)
    report.initial = rest_match.missing + [n for n, _, _ in rest_match.other_shape]
    report.other_shape = rest_match.other_shape
    report.unused = without_spare_counters(body_match.unused) + rest_match.unused
    report.classes = _class_counts(others, rest)
    report.differs = format.differences(model, converted)
    if complete and report.initial:
        raise UserError(incomplete(report))

    fitting = OrderedDict((body_names[n], t) for n, t in body_match.fitting.items())
    fitting.update(rest_match.fitting)
    if converted is weights and format.holds == DETECTOR and hasattr(weights, "_metadata"):
        fitting._metadata = weights._metadata
    model.load_state_dict(fitting, strict=False)
    return report


def find_backbone(model: nn.Module) -> Tuple[str, TimmBackbone | None]:
    """Return the timm backbone in a model and, before it, its name; ``""`` for the model itself."""
    for name, module in model.named_modules():
        if isinstance(module, TimmBackbone):
            return name, module
    return "", None


def timm_tensors(
    model: nn.Module,
) -> Tuple[Tuple[str, ...], Dict[str, str], Dict[str, torch.Tensor]]:
    """Return the tensors of a model's timm network: those of its backbone, and of the res5 of C4.

    Returns:
        tuple[str, ...], dict[str, str], dict[str, Tensor]: the prefixes of their names in the
        model; and by timm's names, the names in the model and the tensors.
    """
    name, backbone = find_backbone(model)
    parts = {n: m for n, m in model.named_modules() if isinstance(m, TimmLastStage)}
    parts = {f"{n}.body." if n else "body.": m for n, m in {name: backbone, **parts}.items()}
    names, tensors = {}, {}
    for prefix, part in parts.items():
        for of_timm, tensor in part.body.state_dict().items():
            names[of_timm], tensors[of_timm] = prefix + of_timm, tensor
    return tuple(parts), names, tensors


def split_detector(weights: StateDict) -> Tuple[StateDict, StateDict]:
    """Split weights of a detector into those of its timm network, by timm's names, and others."""
    body, others = {}, {}
    for name, tensor in weights.items():
        start, found, rest = name.partition("body.")
        if found and start.endswith(_BEFORE_BODY):
            body[rest] = tensor
        else:
            others[name] = tensor
    return body, others


def match_backbone(weights: StateDict, body: StateDict, name: str, format: Format) -> Match:
    """Find the tensors of a timm network in a file, by the names of its release or of today."""
    found = match(weights, body)
    if (found.missing or found.other_shape) and format is TIMM_CLASSIFIER:
        updated = updated_by_timm(weights, name)
        if updated is not None:
            return match(updated, body)
    return found


def check_backbone(found: Match, num_tensors: int, name: str, source: str, format: Format) -> None:
    """Check that a file has all tensors of a timm network, and none of another architecture."""
    what = f"{source} ({format.name}) does not fit the backbone, timm's {name}"
    advice = f"Take weights of {architecture(name)}" + _example_of_weights(name)
    unused = first(found.unused, _EXAMPLES) or "none"
    if all(n.endswith(COUNTER) for n in found.fitting) and not found.other_shape:
        known = ", ".join(f.name for f in FORMATS)
        raise UserError(
            f"{source} has none of the {num_tensors} tensors of the backbone, timm's {name}: its "
            f"names ({unused}) are of another architecture, or of none of the formats that are "
            f"read ({known}). {advice}"
        )
    if found.missing:
        raise UserError(
            f"{what}: {len(found.missing)} of its {num_tensors} tensors are not in the file "
            f"({first(found.missing, _EXAMPLES)}), and {len(found.unused)} of the file are not in "
            f"it ({unused}). {advice}"
        )
    if found.other_shape:
        shapes = "; ".join(_shapes(*entry) for entry in found.other_shape[:_EXAMPLES])
        raise UserError(
            f"{what}: {len(found.other_shape)} of its {num_tensors} tensors have another shape: "
            f"{shapes}. {advice}"
        )
    foreign = foreign_names(found.unused, found.fitting, name)
    if foreign:
        raise UserError(
            f"{what}: {len(foreign)} tensors in the file are not of this architecture "
            f"({first(foreign, _EXAMPLES)}). {advice}"
        )


def _example_of_weights(name: str) -> str:
    if "." in name:
        return f", such as timm://{name}"
    tag = timm.get_pretrained_cfg(name).tag
    return f", such as timm://{name}.{tag}" if tag else ""


def _match_by_name(weights: StateDict, target: StateDict) -> Match:
    found = Match({}, [], [], [])
    for name, tensor in target.items():
        if name in weights and weights[name].shape == tensor.shape:
            found.fitting[name] = weights[name]
        elif name in weights:
            found.other_shape.append((name, tuple(weights[name].shape), tuple(tensor.shape)))
        elif name.split(".")[-1] not in (*_NOT_WEIGHTS, COUNTER):
            found.missing.append(name)
    found.unused.extend(
        n
        for n in weights
        if n not in target and n.split(".")[-1] not in _NOT_WEIGHTS and _CELL_ANCHORS not in n
    )
    return found


def _class_counts(weights: StateDict, target: StateDict) -> Tuple[int, int] | None:
    """The numbers of classes of a file and a model, where the classifiers' shapes differ."""
    for name in target:
        if name.endswith("cls_score.weight") and name in weights:
            counts = tuple(_num_classes(name, w) for w in (weights, target))
            return counts if counts[0] != counts[1] else None
    return None


def _num_classes(name: str, weights: StateDict) -> int:
    outputs = weights[name].shape[0]
    if "box_predictor" in name:
        return outputs - 1  # the last is the background
    # RetinaNet: the outputs of each anchor, which has four deltas.
    deltas = weights.get(name.replace("cls_score", "bbox_pred"))
    return outputs if deltas is None else outputs * 4 // len(deltas)


def incomplete(report: LoadReport) -> str:
    """Return the message for a run whose checkpoint lacks a part of the model."""
    lines = f"{report.source} cannot be resumed from: the model is not the one that was saved"
    if report.classes:
        lines += f" ({report.classes[0]} classes in the file, {report.classes[1]} here)"
    shapes = [_shapes(*entry) for entry in report.other_shape]
    missing = [n for n in report.initial if n not in {e[0] for e in report.other_shape}]
    missing = [f"{n} is not in the file" for n in missing]
    return (
        f"{lines}: {'; '.join((shapes + missing)[:_EXAMPLES])}. Resume with the config of that "
        "run, or name the file in MODEL.WEIGHTS and start a new OUTPUT_DIR"
    )


def _shapes(name: str, in_file: Shape, in_model: Shape) -> str:
    return f"{name} is {in_file} in the file and {in_model} in the model"


def _by_part(names: List[str]) -> str:
    """Return the number of tensors by part: ``FPN (16), proposal_generator (6)``."""
    counts = Counter(_part(name) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "none"


def _part(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "backbone" and len(parts) > 2:
        return "FPN"
    return ".".join(parts[:2]) if parts[0] in ("roi_heads", "network") else parts[0]


def state_dict_of(checkpoint: Dict[str, Any]) -> StateDict:
    """Take the state dict out of a result of :func:`read_checkpoint`, without DDP's prefix."""
    weights = checkpoint.pop("model")
    prefix = "module."
    if not all(name.startswith(prefix) for name in weights):
        return weights
    stripped = OrderedDict((n[len(prefix) :], t) for n, t in weights.items())
    if hasattr(weights, "_metadata"):
        stripped._metadata = {
            n[len(prefix) :] if n.startswith(prefix) else "": v
            for n, v in weights._metadata.items()
            if n != ""
        }
    return stripped
