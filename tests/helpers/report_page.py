"""The data that a page of a report holds."""

import json
from pathlib import Path


def read_data(path):
    text = Path(path).read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])
