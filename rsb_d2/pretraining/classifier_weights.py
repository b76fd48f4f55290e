"""Fitting weights onto an image classifier: strictly but for its last layer."""

from torch import nn

from ..checkpoint.formats.known_formats import DETECTOR, recognise
from ..checkpoint.formats.timm_names import classifier_names, without_spare_counters
from ..checkpoint.loading import (
    LoadReport,
    check_backbone,
    incomplete,
    match_backbone,
    split_detector,
)
from ..checkpoint.reading import StateDict
from ..errors import UserError

_PREFIX = "network."


def load_classifier(
    model: nn.Module,
    weights: StateDict,
    source: str,
    path: str = "",
    complete: bool = False,
) -> LoadReport:
    """Load a state dict of any known format into an image classifier.

    Args:
        model (ImageClassifier): changed in place.
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it; of a detector its
            backbone is taken.
        source (str): what to call it in messages.
        path (str): the local file, for the report.
        complete (bool): the last layer must be in it, too, as when a run is resumed.

    Returns:
        LoadReport

    Raises:
        UserError: as :func:`rsb_d2.checkpoint.loading.load_weights`.
    """
    format = recognise(weights)
    try:
        converted = format.convert(weights)
    except UserError as e:
        raise UserError(f"{source}: {e}") from e
    others = {}
    if format.holds == DETECTOR:
        converted, others = split_detector(converted)
    last = tuple(f"{name}." for name in classifier_names(model.name))
    network = model.network.state_dict()
    body = {n: t for n, t in network.items() if not n.startswith(last)}
    found = match_backbone(converted, body, model.name, format)
    check_backbone(found, len(body), model.name, source, format)

    report = LoadReport(source, path or source, format.name, (_PREFIX,))
    fitting = dict(found.fitting)
    unused = set(found.unused)
    for name in (n for n in network if n.startswith(last)):
        if name in converted and converted[name].shape == network[name].shape:
            fitting[name] = converted[name]
            unused.discard(name)
            continue
        report.initial.append(_PREFIX + name)
        if name in converted:
            shapes = tuple(converted[name].shape), tuple(network[name].shape)
            report.other_shape.append((_PREFIX + name, *shapes))
            unused.discard(name)
            report.classes = len(converted[name]), len(network[name])
    report.loaded = [_PREFIX + name for name in fitting]
    report.unused = without_spare_counters([n for n in found.unused if n in unused])
    report.unused += list(others)
    if complete and report.initial:
        raise UserError(incomplete(report))
    model.network.load_state_dict(fitting, strict=False)
    return report
