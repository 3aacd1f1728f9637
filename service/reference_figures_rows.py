"""Where each reference figure's counterpart comes from: one function a requirement, results in, figures out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.card import TASKS
from policies.policy import Policy
from service import reference_figures_boards as boards
from service.commands import SUPPORTED
from service.reference_figures_form import BY_FORM, COUNTED, MEASURED, MODELLED, Figure, Results, Row, signed

DEPTHS = (25, 50, 75)
TAG_BITS = 128
OFF_BY_CHANCE = 3.0
"""With no event in N trials the rate is below 3/N at 95 % (the rule of three)."""


def _depths(results: Results) -> list[Figure]:
    freeze = results.get("freeze")
    if not freeze:
        return []
    rows = {row["depth_percent"]: row for row in freeze["rows"]}
    work = " / ".join(signed(rows[depth]["work_percent"]) for depth in DEPTHS)
    memory = " / ".join(signed(rows[depth]["memory_percent"]) for depth in DEPTHS)
    told = [
        Figure(f"{freeze['model']}: operations {work} %", COUNTED, "freeze"),
        Figure(f"peak memory above the libraries {memory} %", MEASURED, "freeze"),
    ]
    for data in rows[DEPTHS[0]]["accuracy_points"]:
        points = " / ".join(signed(rows[depth]["accuracy_points"][data]["mean"], 1) for depth in DEPTHS)
        told.append(Figure(f"accuracy {points} points ({data}, {len(freeze['seeds'])} seeds)", MEASURED, "freeze"))
    train = results.get("train")
    for case in train["cases"] if train else ():
        step = {row["depth_percent"]: row["sides"]["temperd"]["step_ms"] for row in case["depths"]}
        saved = {depth: 100 * (step[depth] / step[0] - 1) for depth in DEPTHS if depth in step and 0 in step}
        shown = ", ".join(f"{depth} %: {signed(value)} %" for depth, value in saved.items())
        told.append(Figure(f"time of a step, {case['model']}: {shown}", MEASURED, "train"))
    return told


def _similarity(_results: Results) -> list[Figure]:
    policy = Policy().freezing
    text = (
        f"above {policy.similarity_over_75:.2f}: 75 %, above {policy.similarity_over_50:.2f}: 50 %, "
        f"above {policy.similarity_over_25:.2f}: 25 %, else 0; short trials decide where they can"
    )
    return [Figure(text, "default policy")]


def _eight_bits(results: Results) -> list[Figure]:
    prefix = (results.get("quick") or {}).get("prefix") or {}
    told = [Figure("1 byte for each frozen weight and activation instead of 4: -75 % of bytes", BY_FORM)]
    ratio = prefix.get("int8_seconds_ratio")
    if ratio:
        time, saved = _changed(ratio), signed(100 * (ratio["median"] - 1))
        told += [
            Figure(f"time of the frozen part {time} ({_where(prefix)})", MEASURED, "quick"),
            Figure(f"so its energy {saved} % at equal power", MODELLED, "quick"),
        ]
    return told


def _slices(results: Results) -> list[Figure]:
    slices = ((results.get("quick") or {}).get("prefix") or {}).get("slices")
    if not slices:
        return []
    blocks = f"{slices['whole_block_bytes'] >> 10} to {slices['block_bytes'] >> 10} KiB"
    where = _where(results["quick"]["prefix"])
    return [
        Figure(f"largest block {blocks} ({where})", COUNTED, "quick"),
        Figure(f"latency {_changed(slices['seconds_ratio'])}", MEASURED, "quick"),
        Figure("hot spot: not measured", ""),
    ]


def _energy(results: Results) -> list[Figure]:
    energy = ((results.get("job") or {}).get("result") or {}).get("energy") or {}
    if energy.get("joules_per_sample") is None:
        return []
    modelled = energy["modelled"]
    told = [Figure(f"{energy['joules_per_sample']:.3g} J a sample", MODELLED if modelled else MEASURED, "job")]
    if energy.get("gops_per_watt") is not None:
        told.append(Figure(f"{energy['gops_per_watt']:.1f} GOPS/W", MODELLED if modelled else MEASURED, "job"))
    if modelled:
        told.append(Figure("work of this machine over watts of an emulated board: no figure of that board", ""))
    return told


def _bandwidth(results: Results) -> list[Figure]:
    found = (results.get("quick") or {}).get("bandwidth")
    if not found:
        return []
    beyond = "" if found["beyond_cache"] else ", perhaps of its cache"
    return [
        Figure(f"required {found['required'] / 1e9:.1f} GB/s for the same numbers", "arithmetic", "quick"),
        Figure(f"this machine gives {found['measured'] / 1e9:.0f} GB/s{beyond}", MEASURED, "quick"),
    ]


def _sealed(results: Results) -> list[Figure]:
    told = []
    flips = (results.get("quick") or {}).get("flips")
    if flips:
        told.append(
            Figure(
                f"{flips['flipped'] - flips['missed']} of {flips['flipped']} altered files refused", MEASURED, "quick"
            )
        )
    for row in (results.get("seal") or {}).get("rows", ()):
        if row["work"] == "hash, unseal":
            rate = f"{row['bytes_a_second'] / 1e6:.0f} MB/s"
            told.append(Figure(f"hash and decryption before each job: {rate}", MEASURED, "seal"))
    return told


def _flips(results: Results) -> list[Figure]:
    flips = (results.get("quick") or {}).get("flips")
    if not flips:
        return []
    least = OFF_BY_CHANCE / flips["flipped"]
    return [
        Figure(
            f"{flips['missed']} of {flips['flipped']} single bit flips unseen: a rate below {least:.2g} (95 %)",
            MEASURED,
            "quick",
        ),
        Figure(f"a chance of 2^-{TAG_BITS} a segment by its tag", BY_FORM),
    ]


def _bases(results: Results) -> list[Figure]:
    told = [Figure(f"tasks: {', '.join(TASKS)}", BY_FORM)]
    models = [case["model"] for case in (results.get("train") or {}).get("cases", ())]
    if models:
        told.append(Figure(f"trained for speed: {', '.join(models)}", MEASURED, "train"))
    if results.get("freeze"):
        told.append(Figure(f"trained for accuracy: {results['freeze']['model']}", MEASURED, "freeze"))
    return told


def _layout(results: Results) -> list[Figure]:
    layout = (results.get("quick") or {}).get("layout")
    if not layout:
        return []
    order = "in execution order" if layout["in_order"] else "NOT in execution order"
    whole = "contiguous" if layout["contiguous"] else "NOT contiguous"
    return [
        Figure(
            f"{layout['tensors']} tensors in one block, {order}, {whole}, {layout['aligned']} aligned to 64 bytes, "
            f"{100 * layout['padding_share']:.3f} % padding",
            COUNTED,
            "quick",
        ),
        Figure("speed against another layout: not measured", ""),
    ]


def _link(_results: Results) -> list[Figure]:
    return [Figure(f"commands: {', '.join(SUPPORTED)}; see [mqtt.md](mqtt.md)", BY_FORM)]


def _updates(_results: Results) -> list[Figure]:
    agent = "agent: signed releases in slots, on trial, one way back; system by RAUC; see [updates.md](updates.md)"
    return [Figure(f"models: see R12; {agent}", BY_FORM), Figure("downtime: see [soak.md](soak.md)", BY_FORM)]


def _changed(ratio: Mapping[str, float]) -> str:
    """Median and span of a time over another, as changes."""
    median, least, most = (signed(100 * (ratio[key] - 1)) for key in ("median", "least", "most"))
    return f"{median} % (trials: {least} to {most} %)"


def _where(prefix: Mapping[str, Any]) -> str:
    return f"{prefix['model']}, {prefix['depth_percent']} % frozen, {prefix['batch']} x {prefix['size']} px"


ROWS = (
    Row(
        "R1",
        "freeze the first 0, 25, 50 or 75 % of the layers that hold weights",
        "at 25 / 50 / 75 %: operations -30 / -55 / -78 %, memory -28 / -52 / -75 %, accuracy -0.8 / -1.5 / -2.8 points",
        _depths,
    ),
    Row(
        "R2", "choose the depth by the cosine similarity of target and source features", "above 0.85: 75 %", _similarity
    ),
    Row("R3", "frozen layers in 8 bits", "bandwidth -60 %, energy -45 %", _eight_bits),
    Row("R4", "no live block above a budget (256 KiB): work in slices", "latency -10 %, hot spot -5 °C", _slices),
    Row(
        "R5",
        "more than half frozen: a clock of 0.72 of the top",
        "energy -30 % in idle cycles, battery life +25 %",
        boards.lower_clock,
    ),
    Row(
        "R6",
        "power mode of 12 W instead of 22 W",
        "latency +18 %, energy an inference -35 %, 3000 mAh last 9.5 h instead of 6 h",
        boards.modes,
    ),
    Row("R7", "delta-T: slower above 30 K, paused above 35 K", "below 30 K", boards.guard),
    Row(
        "R8",
        "a stress run of ten minutes fits the board's models",
        "pass or fail in the board's record",
        boards.qualified,
    ),
    Row("R9", "energy a sample that was learnt, operations a joule", "more than 2.4 GOPS/W", _energy),
    Row("R10", "required memory bandwidth against what there is", "7 MB, F_op 2, 20 ms: 1.4 GB/s", _bandwidth),
    Row("R11", "order of jobs below 20 % charge, both orders", "none: both are to be measured", boards.orders),
    Row("R12", "AES-256 at rest and on the way, hash before every fine-tune", "poisoning stopped", _sealed),
    Row("R13", "models, agent and system updated over the air with rollback", "downtime below 0.5 %", _updates),
    Row("R14", "stored files and frozen weights scrubbed every 12 h", "below 1e-9 bit errors unseen", _flips),
    Row("R15", "MobileNetV2 and an EfficientNet of B0 class; three tasks", "none", _bases),
    Row("R16", "throttling, undervoltage, capped clocks and bit errors seen", "none", boards.faults),
    Row("R17", "weights laid out for sequential reads", "none: to be measured", _layout),
    Row("R18", "metrics and commands over MQTT, service, container", "none", _link),
)
"""Every requirement that has a figure, or asks for one."""
GOVERNOR = (
    Row("", "a reading of all sensors", "below 2 ms", boards.reading),
    Row(
        "",
        "prediction against the better of the kernel and the fixed rules",
        "-25 % energy or time, 1.5x samples",
        boards.prediction,
    ),
    Row("", "the governor's own time while a job trains", "at most 1 %", boards.overhead),
    Row("", "from a reading to the worker obeying", "at most one step or 1 s", boards.obedience),
    Row("", "changes of the clock in steady state", "below 1 a minute", boards.changes),
    Row("", "power model after qualification, against hidden constants", "below 10 %", boards.power_error),
)
"""What no requirement names, but the work on the governor set out to reach."""
