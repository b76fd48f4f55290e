"""Class names, from the annotation file to the config file of a run."""

import yaml
from detectron2.engine import default_argument_parser

from rsb_d2.addons.workbench.sample import CLASS_NAMES
from rsb_d2.config.setup import setup
from tests.helpers.runs.scripted_training import CLASS_IDS, SMALL, data_opts
from tests.helpers.seeded_run import make_seeded_config


def test_class_names_are_in_the_config_file(sample_data, tmp_path):
    cfg = make_seeded_config(
        "faster", *data_opts(sample_data), *SMALL, "OUTPUT_DIR", str(tmp_path / "o")
    )
    (tmp_path / "mine.yaml").write_text(cfg.dump())
    cfg = setup(
        default_argument_parser().parse_args(["--config-file", str(tmp_path / "mine.yaml")])
    )
    written = yaml.safe_load((tmp_path / "o" / "config.yaml").read_text())["DATASETS"]
    assert written["CLASS_NAMES"] == cfg.DATASETS.CLASS_NAMES == list(CLASS_NAMES)
    assert written["CLASS_IDS"] == CLASS_IDS
