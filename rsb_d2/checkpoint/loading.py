"""Loading weights into a model: strictly for its backbone, with a report of the rest."""

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import timm
from torch import nn

from ..errors import UserError, first
from ..modeling.last_stage import find_backbone, timm_tensors
from .formats import (
    DETECTOR,
    FORMATS,
    TIMM_CLASSIFIER,
    Format,
    recognize,
)
from .reading import StateDict
from .timm_names import (
    COUNTER,
    Match,
    architecture,
    foreign_names,
    match,
    updated_by_timm,
    without_spare_counters,
)

logger = logging.getLogger(__name__)

Shape = Tuple[int, ...]

# Only in some checkpoints, and made from the config anyway.
_NOT_WEIGHTS = ("pixel_mean", "pixel_std")
_CELL_ANCHORS = "anchor_generator.cell_anchors"

_EXAMPLES = 3

# Where a detector's timm network is: below an FPN, without one, and, of C4, its last stage.
_BEFORE_BODY = ("backbone.bottom_up.", "backbone.", "roi_heads.res5.")


@dataclass
class LoadReport:
    """What :func:`load_weights` did.

    Args:
        source (str): the path as the user wrote it.
        path (str): the local file.
        format_name (str): as in :data:`FORMATS`.
        loaded (list[str]): the model's tensors that were loaded.
        backbone (tuple[str, ...]): prefixes of the backbone's tensors, one for each part of it.
        initial (list[str]): the model's tensors that keep their initial value.
        other_shape (list): of those, what the file has in another shape: the name, the shape in
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
            f"  loaded:  the whole backbone, {of_backbone} tensors; others: {_by_part(others)}",
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
        source (str): what to call it in messages.
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


def split_detector(weights: StateDict) -> Tuple[StateDict, StateDict]:
    """Split a detector's weights into those of its timm network and the others.

    Args:
        weights (dict[str, Tensor]): by the names of this project's detectors.

    Returns:
        dict[str, Tensor], dict[str, Tensor]: by the names of timm's feature net; by their own.
    """
    body, others = {}, {}
    for name, tensor in weights.items():
        start, found, rest = name.partition("body.")
        if found and start.endswith(_BEFORE_BODY):
            body[rest] = tensor
        else:
            others[name] = tensor
    return body, others


def match_backbone(weights: StateDict, body: StateDict, name: str, format: Format) -> Match:
    """Find the tensors of a timm network in a file, by the names of its release or of today.

    Args:
        weights (dict[str, Tensor]): by timm's names.
        body (dict[str, Tensor]): the state dict of the network.
        name (str): timm's name of the model.
        format (Format): what the weights came from.
    """
    found = match(weights, body)
    if (found.missing or found.other_shape) and format is TIMM_CLASSIFIER:
        updated = updated_by_timm(weights, name)
        if updated is not None:
            return match(updated, body)
    return found


def check_backbone(found: Match, num_tensors: int, name: str, source: str, format: Format) -> None:
    """Check that all of a timm network is in a file, and nothing of another one.

    Args:
        found (Match): of :func:`match_backbone`.
        num_tensors (int): of the network.
        name (str): timm's name of the model.
        source (str): what to call the file.
        format (Format): of the file.

    Raises:
        UserError: if it is not so.
    """
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
    """The message where a run cannot be resumed, as the file lacks a part of the model."""
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
    """Tensors summed up: ``FPN (16), proposal_generator (6)``."""
    counts = Counter(_part(name) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "none"


def _part(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "backbone" and len(parts) > 2:
        return "FPN"
    return ".".join(parts[:2]) if parts[0] in ("roi_heads", "network") else parts[0]


def state_dict_of(checkpoint: Dict[str, Any]) -> StateDict:
    """Take the state dict out of what :func:`read_checkpoint` returns, without DDP's prefix."""
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
