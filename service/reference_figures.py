"""The reference figures the project set out from, beside its own: a page made from the JSON that benches wrote. Pure.

A figure that no result gives is `not measured`; `reference_figures_rows` says where each comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.errors import ArtifactError
from service.reference_figures_form import Figure, Results, Row
from service.reference_figures_rows import GOVERNOR, ROWS

NOT_MEASURED = "not measured"
COMMAND = "temperd bench figures --from docs/figures --out docs/reference-figures.md"


def page(results: Results) -> str:
    """The whole page, Markdown.

    Raises:
        ArtifactError: a result has another form than its bench writes.
    """
    tables = [*_rows(ROWS, results), "", "What the governor itself was asked for:", "", *_rows(GOVERNOR, results)]
    return _HEAD + "\n".join([*tables, "", *_foot(results)])


def _rows(rows: Sequence[Row], results: Results) -> list[str]:
    lines = ["| | Asked for | Reference | Ours | How |", "|---|---|---|---|---|"]
    for row in rows:
        figures = _figures(row, results) or [Figure(NOT_MEASURED, "")]
        ours = "<br>".join(figure.text for figure in figures)
        how = "<br>".join(dict.fromkeys(filter(None, map(_origin, figures))))
        lines.append(f"| {row.name} | {row.asks} | {row.reference} | {ours} | {how} |")
    return lines


def table(results: Results) -> list[dict[str, object]]:
    """The same as rows for JSON."""
    return [
        {
            "id": row.name,
            "asks": row.asks,
            "reference": row.reference,
            "ours": [figure._asdict() for figure in _figures(row, results)],
        }
        for row in (*ROWS, *GOVERNOR)
    ]


def _figures(row: Row, results: Results) -> Sequence[Figure]:
    try:
        return row.ours(results)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        fix = "Write it again with this version of its bench"
        raise ArtifactError(f"the results for {row.name} have an unknown form: {error!r}", fix=fix) from error


def _origin(figure: Figure) -> str:
    return f"{figure.how} (`{figure.source}`)" if figure.source else figure.how


_HEAD = f"""\
# Reference figures

The project set out from the figures of a technical article on transfer learning for IoT: what freezing layers and lower
clocks should save on weak hardware. They are targets to be measured against, not truths. Here each stands beside ours,
also where ours is worse.

This page is written by a command from the results in [figures](figures), do not edit it:

    {COMMAND}

`measured`: on the machine named at the end. `modelled`: reckoned for a simulated board, whose constants are published
or assumed ([emulated-board.md](emulated-board.md)). `counted`: exact, from graphs or layouts. A figure without a result
says so.

"""


def origins(results: Results) -> list[dict[str, str]]:
    """Of each result its `name`, the command that it was `written_by`, and the `machine`."""
    found = []
    for name in sorted(results):
        machine = results[name].get("machine") or {}
        where = str(results[name].get("board", "unknown"))
        if machine:
            where = f"{machine.get('processor', 'unknown')}, {machine.get('cores', '?')} cores"
        written = WRITTEN_BY.get(name, f"temperd bench {name} --json")
        found.append({"name": name, "written_by": written, "machine": where})
    return found


def _foot(results: Results) -> list[str]:
    lines = ["Results that were read:", "", "| Result | Written by | Machine |", "|---|---|---|"]
    lines += [f"| `{one['name']}.json` | `{one['written_by']}` | {one['machine']} |" for one in origins(results)]
    return [
        *lines,
        "",
        "Others used that machine at the same time: ratios of things that took turns are good; absolute times, and",
        "times of depths that were measured one after the other, are rough.",
        "",
    ]


WRITTEN_BY = {
    "qualify": "temperd qualify --json",
    "quick": "temperd bench figures --run",
    "job": "temperd fine-tune JOB.toml --json (here: the job of temperd demo)",
}
