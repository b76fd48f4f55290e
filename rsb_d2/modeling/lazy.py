"""The backbone of LazyConfigs, which checks by itself what a YAML config's builder checks."""

import weakref
from typing import Any, Dict, List, Sequence

from ..errors import UserError
from .build import pixel_statistics, pixels_fit
from .timm_backbone import TimmBackbone, check_model_name

_EXAMPLES = 3


class CheckedTimmBackbone(TimmBackbone):
    """A :class:`TimmBackbone` for Detectron2's ``tools/lazyconfig_train_net.py``.

    Images are compared with those of the weights when it is built. Whatever loads it, also the
    stock ``DetectionCheckpointer``, which only logs what does not fit, must have each of its
    tensors, and no others below its name.
    """

    _alive: "weakref.WeakSet[CheckedTimmBackbone]" = weakref.WeakSet()

    def __init__(
        self,
        name: str,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "BN",
        norm_eval: bool = True,
        freeze_at: int = 0,
    ):
        """
        Args:
            name (str): as for :class:`TimmBackbone`; with the tag of the weights, as weights of
                one architecture may take images of different mean and scale.
            pixel_mean, pixel_std (sequence of float): of the meta architecture.
            input_format (str): of the images that it is fed.
            out_features, norm, norm_eval, freeze_at: as for :class:`TimmBackbone`.

        Raises:
            UserError: as :class:`TimmBackbone`, and if the images are not those of the model.
        """
        check_model_name(name)
        if not pixels_fit(name, input_format, pixel_mean, pixel_std):
            mean, std = pixel_statistics(name)
            raise UserError(
                f"input_format {input_format}, pixel_mean {list(pixel_mean)} and pixel_std "
                f"{list(pixel_std)} are not what timm's {name} takes; write model.input_format="
                f"RGB model.pixel_mean={_without_spaces(mean)} "
                f"model.pixel_std={_without_spaces(std)}"
            )
        super().__init__(name, out_features, norm, norm_eval, freeze_at)
        self._alive.add(self)

    @classmethod
    def names_in_use(cls) -> List[str]:
        """timm's names of the backbones that there are in this process."""
        return sorted(backbone.name for backbone in cls._alive)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args) -> None:
        wanted = {f"{prefix}{name}" for name in self.state_dict()}
        given = {name for name in state_dict if name.startswith(prefix)}
        missing = sorted(n for n in wanted - given if not n.endswith("num_batches_tracked"))
        foreign = sorted(given - wanted)
        if missing or foreign:
            raise UserError(
                f"the weights do not fit the backbone, timm's {self.name}: {len(missing)} of its "
                f"{len(wanted)} tensors are missing or have another shape ({_examples(missing)}), "
                f"and {len(foreign)} are not of it ({_examples(foreign)}). Take "
                f"timm://{self.name}, or a checkpoint of this model"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_spaces(values: List[float]) -> str:
    return str([round(v, 3) for v in values]).replace(" ", "")


def _examples(names: List[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) or "none"
