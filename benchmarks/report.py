"""What a measurement reports, as a dict that goes into a JSON file and as text.

A report has these keys; all but the first three may be left out:

``title`` (str)
    what was measured, in a line.
``settings`` (dict[str, str or number])
    with what.
``comparison`` (dict)
    ``passed`` (bool) and ``text`` (str): whether both compute the same, and how that was found.
    Where it is false, no ratio is printed.
``rows`` (list[dict])
    ``what`` (str), ``unit`` (str; "s" by default) and, by the contenders' names, what
    :func:`benchmarks.timing.summarise` returns. The first contender is what the others are
    compared with.
``memory`` (dict[str, int])
    peak memory of each contender in bytes.
``profiles`` (dict[str, str])
    a table of the operators by time, by contender.
``notes`` (list[str])
    what a reader must know as well.
"""

from typing import Any, Dict, List

from .timing import ratio

_NOT_CONTENDERS = ("what", "unit", "ratio")


def add_ratios(report: Dict[str, Any]) -> None:
    """Add to each row ``ratio``: of the first contender to each other, pair by pair.

    Nothing is added where the comparison did not pass.

    Args:
        report (dict): changed in place.
    """
    if not report["comparison"]["passed"]:
        return
    for row in report.get("rows", ()):
        first, *others = contenders(row)
        row["ratio"] = {name: ratio(row[first], row[name]) for name in others}


def contenders(row: Dict[str, Any]) -> List[str]:
    """Names of what a row compares, the reference first."""
    return [name for name in row if name not in _NOT_CONTENDERS]


def format_report(report: Dict[str, Any]) -> str:
    """The report as text for a terminal.

    Args:
        report (dict): after :func:`add_ratios`.

    Returns:
        str
    """
    lines = [report["title"]]
    for key in ("machine", "settings"):
        if key in report:
            lines.append(f"{key}: " + ", ".join(f"{k} {v}" for k, v in report[key].items()))
    passed = report["comparison"]["passed"]
    lines.append(f"{'the same' if passed else 'NOT THE SAME'}: {report['comparison']['text']}")
    lines += _table(report.get("rows", []))
    for name, size in report.get("memory", {}).items():
        lines.append(f"peak memory, {name}: {size / 2**20:.0f} MiB")
    for name, table in report.get("profiles", {}).items():
        lines += [f"operators of {name}:", table]
    return "\n".join([*lines, *report.get("notes", [])])


def _table(rows: List[Dict[str, Any]]) -> List[str]:
    if not rows:
        return []
    names = contenders(rows[0])
    width = max(len(row["what"]) for row in rows)
    header = f"{'':{width}}" + "".join(f"  {name:>26}" for name in names)
    header += "".join(f"  {f'{names[0]} / {name}':>20}" for name in rows[0].get("ratio", {}))
    return [header, *(_line(row, width) for row in rows)]


def _line(row: Dict[str, Any], width: int) -> str:
    unit = row.get("unit", "s")
    line = f"{row['what']:{width}}"
    for name in contenders(row):
        v = row[name]
        line += "  " + f"{v['median']:.3f} ({v['min']:.3f}-{v['max']:.3f}) {unit}".rjust(26)
    for v in row.get("ratio", {}).values():
        line += "  " + f"{v['median']:.2f} ({v['min']:.2f}-{v['max']:.2f})".rjust(20)
    return line
