"""What ``tools/gpu.py`` found, as a table in Markdown."""

from typing import Any, Dict, List

from ..report import contenders


def format_table(found: Dict[str, Any]) -> str:
    """The table to paste into a page.

    Args:
        found (dict): ``machine``, as :func:`benchmarks.timing.machine` returns it, and
            ``rows``: by name, each with ``status`` and, where there is one, ``report``.

    Returns:
        str: a row for each; of a report its first row, milliseconds and ratios.
    """
    lines = [
        ", ".join(f"{key} {value}" for key, value in found.get("machine", {}).items()),
        "",
        "| row | what | stock, ms | ours, ms | times faster than | peak memory, GB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found["rows"].items():
        report = row.get("report")
        if report is None:
            text = row["status"] if row["status"] != "done" else _last(row)
            lines.append(f"| {name} | {text} | | | | |")
        elif not report["comparison"]["passed"]:
            lines.append(f"| {name} | not the same: {report['comparison']['text']} | | | | |")
        else:
            lines += [_line(name, report, r) for r in report.get("rows", [])[:1]]
    return "\n".join(lines)


def _last(row: Dict[str, Any]) -> str:
    return row["output"][-1].replace("|", "/").strip("= ") if row.get("output") else "done"


def _line(name: str, report: Dict[str, Any], row: Dict[str, Any]) -> str:
    first, *others = contenders(row)
    cells = [name, row["what"], _ms(row[first]), _ms(row[others[-1]])]
    cells.append("<br>".join(_ratios(row, first, others)))
    memory = report.get("memory", {})
    cells.append(", ".join(f"{n} {size / 1e9:.2f}" for n, size in memory.items()))
    return f"| {' | '.join(cells)} |"


def _ratios(row: Dict[str, Any], first: str, others: List[str]) -> List[str]:
    """Of ours, to each other contender, from the medians."""
    ours = row[others[-1]]["median"]
    return [
        f"{name} **{row[name]['median'] / ours:.2f}**" + ("" if _is_steady(row) else " (unsteady)")
        for name in (first, *others[:-1])
    ]


def _is_steady(row: Dict[str, Any]) -> bool:
    return all(row[name].get("steady", True) for name in contenders(row))


def _ms(summary: Dict[str, Any]) -> str:
    low, high = 1000 * summary["min"], 1000 * summary["max"]
    return f"{1000 * summary['median']:.1f} ({low:.1f}-{high:.1f})"
