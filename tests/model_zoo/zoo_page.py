"""The tables of docs/detectron2_zoo.md; ``python -m tests.model_zoo.zoo_page`` writes them.

They show the results of ``with_rsb_backbone`` on each YAML of Detectron2's zoo, and the lists of keys
in detectron2_keys.yaml.
"""

import re
from collections import defaultdict
from pathlib import Path

import yaml
from detectron2 import model_zoo

from rsb_d2 import UserError
from rsb_d2.model_zoo import with_rsb_backbone
from tests.helpers.paths import ROOT
from tests.helpers.zoo_model import NAMES

PAGE = ROOT / "docs" / "detectron2_zoo.md"
LISTS = yaml.safe_load((Path(__file__).parent / "detectron2_keys.yaml").read_text())


def zoo_table():
    """Return a row for each YAML: the resulting model, or the error message."""
    rows = ["| YAML | builder | timm's model | norm | features | weights |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    refused = []
    for name in NAMES:
        cfg = model_zoo.get_config(name)
        try:
            with_rsb_backbone(cfg)
        except UserError as e:
            refused.append((name, str(e)))
            continue
        keys, dilation = cfg.MODEL.TIMM, cfg.MODEL.RESNETS.RES5_DILATION
        norm = f"{keys.NORM}, statistics learned" if not keys.NORM_EVAL else keys.NORM
        features = f"{keys.OUT_FEATURES[0]} … {keys.OUT_FEATURES[-1]}"
        if len(keys.OUT_FEATURES) == 1:
            features = keys.OUT_FEATURES[0] + (", dilated" if dilation == 2 else "")
        weights = f"`{cfg.MODEL.WEIGHTS}`" if cfg.MODEL.WEIGHTS else "none: from scratch"
        builder = cfg.MODEL.BACKBONE.NAME
        rows.append(f"| {name} | `{builder}` | {keys.NAME} | {norm} | {features} | {weights} |")
    rows += ["", "These are refused:", "", "| YAML | error message |", "| --- | --- |"]
    rows += [f"| {name} | {line} |" for name, line in refused]
    return "\n".join(rows)


def keys_table():
    """Return a row for each module that honors keys, and one for each other key."""
    rows = ["| honored by | keys |", "| --- | --- |"]
    for part, keys in LISTS["honoured"].items():
        rows.append(f"| `{part}` | {shortened(keys)} |")
    for key, where in LISTS["read_elsewhere"].items():
        rows.append(f"| {where} | `{key}` |")
    rows += ["", "| not applicable | reason |", "| --- | --- |"]
    rows += [f"| `{key}` | {why} |" for key, why in LISTS["not_ours"].items()]
    rows += ["", "| refused | the error message contains |", "| --- | --- |"]
    for key, value, line in LISTS["refused"]:
        value = str(value).replace("'", "")
        rows.append(f"| `{key}` {value} | {line.replace('.*', '…')} |")
    return "\n".join(rows)


def shortened(keys):
    """Return keys grouped by node: ``MODEL.RPN``: ``HEAD_NAME``, ``IN_FEATURES``."""
    nodes = defaultdict(list)
    for key in keys:
        node, _, name = key.rpartition(".")
        nodes[node].append(f"`{name}`")
    parts = [f"{f'`{node}`: ' if node else ''}{', '.join(n)}" for node, n in nodes.items()]
    return "; ".join(parts)


TABLES = {"zoo": zoo_table, "keys": keys_table}


def with_tables(text):
    """Return the page with up-to-date tables."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.escape(start) + ".*?" + re.escape(end)
        new = f"{start}\n\n{table()}\n\n{end}"
        text, count = re.subn(pattern, lambda _, new=new: new, text, flags=re.S)
        assert count == 1, f"{PAGE} has no place for the table of the {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
