"""Config files and overrides that cannot be read."""

import pytest

from tests.helpers.data.bad_input import Case, check_stop, config_file, opts

STOPS = [
    Case("rate a text", opts("SOLVER.BASE_LR", "fast"), "Type mismatch .*fast.* SOLVER.BASE_LR"),
    Case("batch 2.5", opts("SOLVER.IMS_PER_BATCH", "2.5"), "Type mismatch .*IMS_PER_BATCH"),
    Case("key misspelt", opts("SOLVER.BASE_LRR", "1.0"), "SOLVER.BASE_LRR; did you mean .*BASE_LR"),
    Case("config file missing", lambda d: ["--config-file", "no.yaml"], "there is no file no.yaml"),
    Case("config file that is none", config_file("{"), "bad.yaml: "),
    Case(
        "config file of bytes",
        lambda d: (
            (d / "bad.yaml").write_bytes(b"\xff\xfe\x00\x01") and ["--config-file", "bad.yaml"]
        ),
        "bad.yaml",
    ),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)
