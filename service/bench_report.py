"""What the benches found, as rows for JSON, as tables for people and as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from service.bench_chart import Bars, bar_chart
from service.bench_train import EPOCH_SAMPLES, EPOCHS, Figures, best, epochs_s

SIDES = (("temperd", "#b45309"), ("torch", "#1d4ed8"), ("torch+malloc", "#60a5fa"), ("ort-training", "#4b5563"))
OURS, ARTICLE = ("temperd", "#b45309"), ("article", "#9ca3af")
Row = Mapping[str, Any]


def depth_row(depth_percent: int, frozen_layers: int, batch: int, figures: Sequence[Figures]) -> dict[str, object]:
    """One depth: every variant's figures, the best of each side, and each side over temperd."""
    sides: dict[str, dict[str, object]] = {}
    for name, _ in SIDES:
        found = best(figures, name)
        if found is not None:
            sides[name] = _side(found, batch)
    ours = sides["temperd"]
    ratios = {name: _ratios(side, ours) for name, side in sides.items() if name != "temperd"}
    return {
        "depth_percent": depth_percent,
        "frozen_layers": frozen_layers,
        "sides": sides,
        "over_temperd": ratios,
        "variants": [found.summary() for found in figures],
    }


def _side(found: Figures, batch: int) -> dict[str, object]:
    """Epochs of temperd use its cache; a peer runs the frozen part each time, what a cache would give is told apart."""
    first, later, whole = epochs_s(found, batch, cached=found.name == "temperd")
    cached = epochs_s(found, batch, cached=True)[2] if found.cached_step_ms else None
    return {
        "version": found.version,
        "fastest_variant": found.variant,
        "step_ms": statistics.median(found.step_ms),
        "peak_mib": max(found.peak_mib, found.cached_peak_mib if found.name == "temperd" else 0.0),
        "libraries_mib": found.start_mib,
        "ready_s": found.ready_s,
        "first_epoch_s": first,
        "later_epoch_s": later,
        "ten_epochs_s": whole,
        "ten_epochs_with_a_cache_s": cached,
        "update_difference": found.update_difference,
    }


def _ratios(side: Row, ours: Row) -> dict[str, float]:
    return {key: side[key] / ours[key] for key in ("step_ms", "peak_mib", "later_epoch_s", "ten_epochs_s")}


def show_train(report: Row) -> None:
    """Print the tables."""
    where = report["machine"]
    print(f"{where['processor']}, {where['cores']} cores; {report['threads']} threads a side; medians")
    for case in report["cases"]:
        title = (
            f"{case['model']}, {report['batch']} x {report['size']} px, {report['optimizer']}, {case['layers']} layers"
        )
        print(f"\n{title}")
        heads = ("step ms", "", "peak MiB", "", "later epoch s", "", f"{EPOCHS} epochs s", "", "ready s")
        print(_line("frozen", "side", heads))
        for row in case["depths"]:
            for name, side in row["sides"].items():
                print(_line(f"{row['depth_percent']} %", name, _cells(side, row["over_temperd"].get(name))))
        print(f"  epochs: {EPOCH_SAMPLES} images; x: times temperd's figure; torch: best of its two memory formats")
        print("  torch+malloc: glibc told to keep large blocks; ten epochs of a peer run the frozen part every time")
        for row in case["depths"]:
            own = [f"{n} {s['ten_epochs_with_a_cache_s']:.1f} s" for n, s in row["sides"].items() if _has_cache(n, s)]
            if own:
                print(f"  {row['depth_percent']} %, ten epochs if the peer cached by hand too: {', '.join(own)}")
        _show_linearity(case.get("linearity", {}))
    versions = {side["version"] for case in report["cases"] for row in case["depths"] for side in row["sides"].values()}
    print(f"\n{'; '.join(sorted(versions))}")


def _has_cache(name: str, side: Row) -> bool:
    return name != "temperd" and side["ten_epochs_with_a_cache_s"] is not None


def _cells(side: Row, ratios: Row | None) -> tuple[str, ...]:
    cells: list[str] = []
    for key, digits in (("step_ms", 1), ("peak_mib", 0), ("later_epoch_s", 2), ("ten_epochs_s", 1)):
        cells += [f"{side[key]:.{digits}f}", f"{ratios[key]:.2f}x" if ratios else ""]
    compiles = not side["version"].startswith("torch")  # eager mode has nothing to compile
    return (*cells, f"{side['ready_s']:.2f}" if compiles else "")


def _line(depth: str, side: str, cells: Sequence[str]) -> str:
    shown = "".join(f"{cell:>8}" if place % 2 else f"{cell:>14}" for place, cell in enumerate(cells))
    return f"  {depth:>6}  {side:<13}{shown}"


def _show_linearity(found: Mapping[str, Any]) -> None:
    for name, fit in found.items():
        points = ", ".join(f"{x:g}: {y:.1f}" for x, y in fit["points"])
        print(f"  step ms against {name.replace('_', ' ')}: {points}; line fits with R^2 = {fit['r_squared']:.4f}")


def train_chart(report: Row) -> str:
    """Step times, peak memory and ten epochs by depth, a set of panels a case."""
    panels = []
    for case in report["cases"]:
        present = [side for side in SIDES if side[0] in case["depths"][0]["sides"]]
        groups = [f"{row['depth_percent']} % frozen" for row in case["depths"]]
        for key, title in (
            ("step_ms", "ms a step"),
            ("peak_mib", "peak MiB"),
            ("ten_epochs_s", f"s, {EPOCHS} epochs"),
        ):
            values = [[row["sides"][name][key] for name, _ in present] for row in case["depths"]]
            panels.append(Bars(title, groups, present, values))
    models = ", ".join(case["model"] for case in report["cases"])
    return bar_chart(f"{models}: {report['batch']} x {report['size']} px, {report['optimizer']}", panels)


def show_freeze(report: Row) -> None:
    """Print R1's table."""
    print(
        f"{report['model']}, {report['batch']} x {report['size']} px, {report['epochs']} epochs at "
        f"{report['learning_rate']:g}, seeds {', '.join(map(str, report['seeds']))}; in brackets the article's figure"
    )
    sets = list(report["rows"][0]["accuracy"])
    heads = "".join(f"{name[:26]:>28}" for name in sets)
    print(f"  {'frozen':>7}{'work':>15}{'memory':>15}{'process':>9}{'MiB':>6}{'step ms':>9}{heads}")
    for row in report["rows"]:
        article = row["article"] or {}
        name = "head" if row["depth_percent"] == 100 else f"{row['depth_percent']} %"  # noqa: PLR2004 - percent
        cells = f"{_beside(row['work_percent'], article.get('work_percent'))}"
        cells += f"{_beside(row['memory_percent'], article.get('memory_percent'))}"
        cells += f"{row['peak_percent']:>7.0f} %{row['peak_mib']:>6.0f}{row['step_ms']:>9.1f}"
        for data in sets:
            accuracy, lost = row["accuracy"][data], row["accuracy_points"][data]
            shown = f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['deviation']:.1f}"
            beside = f"({article['points']:+.1f})" if article else ""
            cells += f"{shown:>13} {lost['mean']:+.1f}±{lost['deviation']:.1f} {beside:<6}"
        print(f"  {name:>7}{cells}")
    for name, floor in report["largest_class"].items():
        if any(row["accuracy"][name]["mean"] <= floor for row in report["rows"]):
            print(f"  {name}: some depths learnt nothing (the largest class gives {100 * floor:.1f}): lower the rate")
    print("  work: multiply-accumulates of a step; memory: peak above the loaded libraries; process: peak of all of it")
    print("  accuracy: held out, %, mean ± deviation over seeds, then points against full fine-tuning of the same seed")


def _beside(value: float, article: float | None) -> str:
    shown = f"{value:.0f} %" + (f" ({article:.0f} %)" if article is not None else "")
    return f"{shown:>15}"


def freeze_chart(report: Row) -> str:
    """Savings and losses by depth beside the article's."""
    rows = [row for row in report["rows"] if row["article"]]
    groups = [f"{row['depth_percent']} % frozen" for row in rows]
    panels = [
        Bars(title, groups, (OURS, ARTICLE), [[-row[key], -row["article"][key]] for row in rows])
        for key, title in (("work_percent", "% of work saved"), ("memory_percent", "% of memory saved"))
    ]
    sets = list(rows[0]["accuracy"])
    colors = [(name[:16], SIDES[place % len(SIDES)][1]) for place, name in enumerate(sets)]
    lost = [
        [*(max(0.0, -row["accuracy_points"][name]["mean"]) for name in sets), -row["article"]["points"]] for row in rows
    ]
    panels.append(Bars("points lost", groups, (*colors, ARTICLE), lost))
    return bar_chart(f"{report['model']}: what freezing saves and costs", panels)
