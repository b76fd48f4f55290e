"""docs/quickstart.ipynb runs from top to bottom, with a smaller model and few images."""

import itertools
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


def parts_of(cell):
    """Yield the parts of a cell in order: its shell commands, files to write, and Python."""
    for old, new in REPLACED.items():
        cell = cell.replace(old, new)
    file = re.match(r"%%writefile (\S+)\n", cell)
    if file:
        yield file[1], cell[file.end() :]
        return
    for is_command, lines in itertools.groupby(cell.split("\n"), lambda x: x.startswith("!")):
        if is_command:
            yield from (("!", line[1:]) for line in lines)
        else:
            yield "python", "\n".join(lines)


@pytest.mark.slow
def test_every_cell(tmp_path_factory):
    program = ""
    clones = Clones(tmp_path_factory.mktemp("notebook"))
    folder = clones.folder(PAGE)
    for kind, text in [part for cell in find_cells() for part in parts_of(cell)]:
        if kind not in ("!", "python"):
            config = merge(yaml.safe_load(text), SECONDS)
            (folder / kind).write_text(yaml.safe_dump(config))
            continue
        if kind == "python":
            program += f"{text}\n"
            text = f"python -c {shlex.quote(program)}"
        elif re.match("pip install|rsb-d2 install-detectron2", text):
            continue
        done = clones.run(PAGE, text)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Boxes(" in done.stdout
    assert (folder / "output" / "shapes" / "model_final.pth").is_file()
    assert len(list((folder / "predictions" / "pictures").iterdir())) == 2
    assert (folder / "predictions" / "results.json").is_file()
