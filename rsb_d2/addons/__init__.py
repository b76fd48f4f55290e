"""Optional parts on top of the core; each has a docstring that gives its purpose.

Importing this package imports none of them: it registers the objects that the core may call.
"""

from ..extensions import ACCELERATION, LOGGERS, STORAGES

ACCELERATION.register(
    "optimize_for_inference", "rsb_d2.addons.accelerate.optimize.optimize_for_inference"
)
ACCELERATION.register("pool_channels_last", "rsb_d2.addons.accelerate.roi_align.pool_channels_last")
LOGGERS.register("wandb", "rsb_d2.addons.loggers.WandbLogger")
LOGGERS.register("mlflow", "rsb_d2.addons.loggers.MlflowLogger")
STORAGES.register("tar", "rsb_d2.addons.storage.TarStorage")
STORAGES.register("remote", "rsb_d2.addons.storage.RemoteStorage")
