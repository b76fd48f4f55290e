"""timm's names of the tensors of a model, and of the feature net that it makes from the model."""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Dict, Iterator, List, NamedTuple, Tuple

import timm
import torch
from torch import nn

from .reading import StateDict

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
    """Possible names, in the complete model, of a tensor of a timm feature net, likeliest first.

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

    Args:
        weights (dict[str, Tensor]): by the names of the complete model, or of the feature net.
        target (dict[str, Tensor]): the state dict of the feature net. Of it, the norm layers'
            ``num_batches_tracked`` are 0 where ``weights`` has none: older files lack them.

    Returns:
        Match
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
    """Tensors of a file that show that it is of another architecture, perhaps a deeper one.

    A classifier, and layers above the deepest feature, are in a file and not in the backbone. But
    a tensor next to used ones that timm's model does not have at all is something that the model
    of the file computes with.

    Args:
        unused (collection of str): the file's tensors that are not used, by any names.
        used (collection of str): those that are, by the names of timm's model or its feature net.
        name (str): timm's name of the model.

    Returns:
        list[str]: of ``unused``.
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
    """Bring weights of an older release, or of a model's first publication, to today's names.

    timm does so while it loads them into a complete model; no tensor may be missing.

    Args:
        weights (dict[str, Tensor]): of a complete classification model.
        name (str): timm's name of the model.

    Returns:
        dict[str, Tensor] or None: by today's names; ``None`` if timm cannot load them either.
    """
    num_classes = _num_classes(weights, name)
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


def _num_classes(weights: StateDict, name: str) -> int:
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
