"""docs/quickstart.ipynb runs from top to bottom, with a smaller model and few images."""

import contextlib
import json
import re
import shlex

import pytest
import yaml

from tests.helpers.clone import SECONDS, Clones, merge
from tests.helpers.paths import ROOT

PAGE = "docs/quickstart.ipynb"
# Published weights cannot be downloaded, and 200 images take long.
REPLACED = {
    "frcnn_torchvision_v2": "frcnn_rsb_1x",
    "--num-train 200 --num-val 40": "--num-train 8 --num-val 2",
}


def find_cells():
    """Return the cells of code."""
    notebook = json.loads((ROOT / PAGE).read_text())
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["language"] == "python"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def as_python(cell):
    """Return a cell as Jupyter runs it: ``!command`` and ``%%writefile`` become Python."""
    for old, new in REPLACED.items():
        cell = cell.replace(old, new)
    file = re.match(r"%%writefile (\S+)\n", cell)
    if file:
        config = merge(yaml.safe_load(cell[file.end() :]), SECONDS)
        return f"open({file[1]!r}, 'w').write({yaml.safe_dump(config)!r})"
    return re.sub(
        r"^!(.*)$", lambda m: f"subprocess.run({m[1]!r}, shell=True, check=True)", cell, flags=re.M
    )


@pytest.mark.slow
def test_every_cell(tmp_path_factory):
    cells = [as_python(cell) for cell in find_cells() if not cell.startswith("!pip install")]
    program = "\n".join(["import subprocess", *cells])
    with contextlib.ExitStack() as stack:
        clones = Clones(tmp_path_factory.mktemp("notebook"), stack)
        done = clones.run(PAGE, f"python -c {shlex.quote(program)}")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = clones.folder(PAGE)
    assert "Boxes(" in done.stdout
    assert (folder / "output" / "shapes" / "model_final.pth").is_file()
    assert len(list((folder / "predictions" / "pictures").iterdir())) == 2
    assert json.loads((folder / "predictions" / "results.json").read_text()) is not None
