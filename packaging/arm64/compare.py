#!/usr/bin/env python3
"""Whether training gave the same losses everywhere.

    python3 compare.py REFERENCE.json OTHER.json...

Each file is what `losses.py` printed. Ends with 1 where a loss differs from the reference's by more than `TOLERANCE`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # relative


def largest_difference(expected: Sequence[float], found: Sequence[float]) -> float:
    """Largest relative difference; infinite where the numbers of steps differ or a loss is not finite and above zero.

    A loss that is not a number equals nothing, and must not pass as agreement.
    """
    if not expected or len(expected) != len(found):
        return math.inf
    if not all(math.isfinite(loss) and loss > 0 for loss in (*expected, *found)):
        return math.inf
    return max(abs(theirs - ours) / ours for ours, theirs in zip(expected, found, strict=True))


def differences(reference: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Largest difference of each case that either of two reports has."""
    ours, theirs = reference["losses"], other["losses"]
    return {name: largest_difference(ours.get(name, ()), theirs.get(name, ())) for name in sorted(ours.keys() | theirs)}


def title(report: Mapping[str, Any]) -> str:
    """Where a report comes from."""
    return f"{report['machine']}, kernel library: {report['library'] or 'none'}"


def main() -> int:
    """Print a line for each comparison; 0 when all agree, 1 when one does not, 2 when there is nothing to compare."""
    reference, *others = (json.loads(Path(name).read_text("utf-8")) for name in sys.argv[1:])
    if not others or not reference["losses"]:
        sys.stderr.write("compare.py: give two or more reports with losses\n")
        return 2
    sys.stdout.write(f"     reference: {title(reference)}\n")
    agreed = True
    for other in others:
        for name, difference in differences(reference, other).items():
            same = difference <= TOLERANCE
            agreed &= same
            sys.stdout.write(f"{'ok  ' if same else 'FAIL'} {title(other)}: {name}: {difference:.1e}\n")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
