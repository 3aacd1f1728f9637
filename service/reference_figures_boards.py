"""Figures of boards: what the governor, the stress run and the power modes give. Results in, figures out. Pure."""

from __future__ import annotations

import statistics

from service.reference_figures_form import MEASURED, MODELLED, Figure, Results, signed, span


def lower_clock(results: Results) -> list[Figure]:
    """R5: what a clock of 0.72 saves."""
    clock = (results.get("quick") or {}).get("clock")
    if not clock:
        return []
    rows = list(clock.values())
    return [
        Figure(f"power under load {span(rows, 'watts_percent')} % on {len(rows)} boards", MODELLED, "quick"),
        Figure(f"energy a sample {span(rows, 'joules_a_sample_percent')} %, as a step takes longer", MODELLED, "quick"),
        Figure(f"idle power {span(rows, 'idle_watts_percent')} %: an idle clock switches nothing", MODELLED, "quick"),
        Figure(f"battery life under load {span(rows, 'battery_life_percent')} %", MODELLED, "quick"),
    ]


def modes(results: Results) -> list[Figure]:
    """R6: two power modes of one board."""
    found = (results.get("quick") or {}).get("modes")
    if not found:
        return []
    return [
        Figure(
            f"{found['watts']:.0f} W to {found['saving_watts']:.0f} W: watts and clocks of this board were chosen "
            "after R6, so the next line follows",
            MODELLED,
            "quick",
        ),
        Figure(
            f"latency {signed(found['latency_percent'])} %, energy an inference {signed(found['joules_percent'])} %",
            MODELLED,
            "quick",
        ),
        Figure(
            f"{found['cells']:.0f} cells of 3000 mAh last {found['saving_hours']:.1f} h instead of "
            f"{found['hours']:.1f} h; one cell holds 11 Wh, 22 W for 6 h are 132 Wh",
            MODELLED,
            "quick",
        ),
    ]


def guard(results: Results) -> list[Figure]:
    """R7: time above the bound, by governor."""
    govern = results.get("govern")
    if not govern:
        return []
    rows = [row for plan in govern["plans"] for row in plan["rows"]]
    told = []
    for governor, name in (("kernel", "the kernel alone"), ("rules", "fixed rules"), ("predictive", "prediction")):
        over = [row["above_delta_s"] for row in rows if row["governor"] == governor]
        if over:
            text = f"{name}: above 30 K for {statistics.fmean(over):.0f} s a run on average, at most {max(over):.0f} s"
            told.append(Figure(text, MODELLED, "govern"))
    return told


def qualified(results: Results) -> list[Figure]:
    """R8: stress runs."""
    told = []
    rows = (results.get("quick") or {}).get("qualify")
    if rows:
        passed = sum(bool(row["passed"]) for row in rows)
        told = [
            Figure(
                f"{passed} of {len(rows)} simulated boards and airs pass; delta-T at full load with full cooling "
                f"{span(rows, 'delta_t_kelvin', 1, sign=False)} K",
                MODELLED,
                "quick",
            ),
            Figure(
                f"fitted power off the meter by {span(rows, 'power_error', 1, 100.0, sign=False)} %",
                MODELLED,
                "quick",
            ),
        ]
    run = results.get("qualify")
    if run:
        verdict = "passed" if run["passed"] else "not passed: " + ", ".join(x["code"] for x in run["reasons"])
        delta = "-" if run["delta_t_kelvin"] is None else f"{run['delta_t_kelvin']:.1f} K"
        told.append(
            Figure(f"a run on {run['board']}: {verdict}, {delta}", MODELLED if run["modelled"] else MEASURED, "qualify")
        )
    return told


def orders(results: Results) -> list[Figure]:
    """R11: jobs that end on what is left of a charge, by their order."""
    found = (results.get("quick") or {}).get("orders")
    if not found:
        return []
    return [
        Figure(f"{order}: {ended['75']} jobs with 75 % and {ended['0']} with 0 % frozen end", MODELLED, "quick")
        for order, ended in found.items()
    ]


def faults(results: Results) -> list[Figure]:
    """R16: injected faults that were noticed."""
    found = (results.get("quick") or {}).get("faults")
    if not found:
        return []
    missed = [name for name, seen in found.items() if not seen]
    text = f"{len(found) - len(missed)} of {len(found)} injected faults seen: {', '.join(found)}"
    return [Figure(text + (f"; missed: {', '.join(missed)}" if missed else ""), MODELLED, "quick")]


def reading(results: Results) -> list[Figure]:
    """What a reading of all sensors costs."""
    told = []
    for row in (results.get("board") or {}).get("rows", ()):
        times = f"{row['processor_median_ms']:.2f} ms, one in a hundred above {row['processor_p99_ms']:.1f} ms"
        text = f"{row['board']}, {len(row['there'])} kinds of sensors there: {times}, processor time"
        told.append(Figure(text, MEASURED, "board"))
    return told


def prediction(results: Results) -> list[Figure]:
    """What prediction saves."""
    told = []
    for plan in (results.get("govern") or {}).get("plans", ()):
        rows = plan["compared"]
        for key, name in (
            ("joules_percent", "energy to equal accuracy"),
            ("seconds_percent", "time to equal accuracy"),
        ):
            found = [row for row in rows if row[key] is not None]
            if found:
                text = f"{name} {span(found, key)} % on {len(found)} boards and airs"
                told.append(Figure(f"{text}, planned depth {plan['plan_percent']} %", MODELLED, "govern"))
        charge = [row for row in rows if row["samples_a_charge"] is not None]
        if charge:
            text = f"samples a charge, planned depth {plan['plan_percent']} %: "
            told.append(Figure(text + f"{span(charge, 'samples_a_charge', 2, sign=False)}x", MODELLED, "govern"))
    return told


def changes(results: Results) -> list[Figure]:
    """How often prediction changes the clock."""
    rows = [row for plan in (results.get("govern") or {}).get("plans", ()) for row in plan["rows"]]
    found = [row for row in rows if row["governor"] == "predictive" and row["clock_changes_a_minute"] is not None]
    if not found:
        return []
    return [Figure(f"{span(found, 'clock_changes_a_minute', 2, sign=False)} a minute", MODELLED, "govern")]


def overhead(results: Results) -> list[Figure]:
    """What the governor costs a job."""
    governor = ((results.get("job") or {}).get("result") or {}).get("governor") or {}
    if governor.get("share") is None:
        return []
    text = f"{100 * governor['share']:.2f} % over {governor['ticks']} readings of an emulated board"
    return [Figure(text, MEASURED, "job")]


def obedience(results: Results) -> list[Figure]:
    """How soon a worker obeys."""
    governor = ((results.get("job") or {}).get("result") or {}).get("governor") or {}
    if governor.get("obey_s_max") is None:
        return []
    text = (
        f"{governor['obey_s_median']:.2f} s, at most {governor['obey_s_max']:.2f} s in {governor['orders']} orders; "
        f"longest step {governor['longest_step_s']:.2f} s"
    )
    return [Figure(text, MEASURED, "job")]


def power_error(results: Results) -> list[Figure]:
    """How well the power model foretells what was hidden from it."""
    rows = (results.get("quick") or {}).get("qualify")
    if not rows:
        return []
    error = 100 * max(row["grid_error"] for row in rows)
    text = f"at most {error:.1f} % over clocks, loads, heat and fans; the emulator computes by the model's own formula"
    return [Figure(text, MODELLED, "quick")]
