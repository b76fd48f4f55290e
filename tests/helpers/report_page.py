"""The data of an HTML page of the workbench."""

import json
from pathlib import Path


def read_data(path):
    text = Path(path).read_text()
    start = text.index('id="data">') + len('id="data">')
    end = text.index("</script>", start)
    assert "<" not in text[start:end]  # a browser would take it for a tag
    return json.loads(text[start:end])
