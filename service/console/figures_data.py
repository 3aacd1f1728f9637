"""The reference figures as the page shows them: one JSON file, made from the results in docs/figures.

A wheel has no documents, so the file is part of the package:

    python -m service.console.figures_data docs/figures
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent import strict_json
from agent.durable import read_bounded, write_atomic
from service.cli_figures import read_results
from service.reference_figures import origins, table
from service.reference_figures_form import Results

FILE = Path(__file__).parent / "figures.json"
MAX_BYTES = 256 << 10  # it has some 12 KB
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")  # to another document, which the page does not have


def made_from(results: Results) -> str:
    """The text of the file.

    Args:
        results: by the name of the bench, as `service.cli_figures.read_results` reads them.

    Raises:
        ArtifactError: a result has another form than its bench writes.
    """
    rows = json.loads(json.dumps(table(results)))
    for row in rows:
        for figure in row["ours"]:
            figure["text"] = _LINK.sub(r"\1", figure["text"])
    return json.dumps({"rows": rows, "origins": origins(results)}, indent=1) + "\n"


@functools.cache
def figures() -> Mapping[str, Any]:
    """What the page shows: `rows` as `service.reference_figures.table` gives them, `origins` as that module does.

    Raises:
        ArtifactError: the file is no JSON: the installation is damaged.
        BoardError: it cannot be read.
    """
    found = strict_json.loads(read_bounded(FILE, MAX_BYTES), what=FILE.name, max_bytes=MAX_BYTES)
    return found if isinstance(found, dict) else {"rows": [], "origins": []}


def main(arguments: list[str]) -> int:
    """Write the file anew from a folder of results."""
    write_atomic(FILE, made_from(read_results(Path(arguments[0]))).encode(), 0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
