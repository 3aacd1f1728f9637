"""The page of reference figures: what the command writes from the committed results, a row for each requirement."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agent.errors import ArtifactError, SpecError
from service import cli
from service.cli_figures import MAX_RESULTS, read_results
from service.reference_figures import NOT_MEASURED, page, table
from service.reference_figures_measured import flipped_bits
from service.reference_figures_modelled import R6_SLOWER, faults_seen, lower_clock, orders, power_modes
from service.reference_figures_rows import GOVERNOR, ROWS

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "figures"


def test_the_page_is_what_the_command_writes_from_the_committed_results(tmp_path: Path) -> None:
    written = tmp_path / "page.md"
    assert cli.main(["bench", "figures", "--from", str(RESULTS), "--out", str(written)]) == 0
    told = "write it again: temperd bench figures --from docs/figures --out docs/reference-figures.md"
    assert written.read_text("utf-8") == (DOCS / "reference-figures.md").read_text("utf-8"), told


def test_every_requirement_has_a_row() -> None:
    assert [row.name for row in ROWS] == [f"R{number}" for number in range(1, 19)]
    drawn = page({})
    assert re.findall(r"^\| (R\d+) \|", drawn, re.MULTILINE) == [row.name for row in ROWS]


def test_without_results_nothing_is_claimed_to_be_measured_or_modelled() -> None:
    for row in table({}):
        figures = row["ours"]
        assert isinstance(figures, list)
        assert not [figure for figure in figures if figure["source"]], row["id"]
        assert not [figure for figure in figures if figure["how"] in ("measured", "modelled", "counted")], row["id"]
    assert page({}).count(NOT_MEASURED) >= 12


def test_every_figure_comes_from_a_committed_result() -> None:
    results = read_results(RESULTS)
    sources = set()
    for row in table(results):
        figures = row["ours"]
        assert isinstance(figures, list)
        sources |= {figure["source"] for figure in figures if figure["source"]}
    assert sources <= results.keys(), "no figure without its result"
    assert results.keys() <= sources, "no result that nothing is taken from"


def test_committed_results_name_no_folders() -> None:
    for path in RESULTS.glob("*.json"):
        assert not re.search(r'"(/|[A-Z]:\\)', path.read_text("utf-8")), path.name


@pytest.mark.parametrize("row", [*ROWS, *GOVERNOR], ids=lambda row: row.name or row.asks)
def test_a_result_of_another_form_is_refused_by_the_name_of_its_requirement(row: object) -> None:
    results = {name: {"rows": [{}], "plans": [{}], "cases": [{}], "qualify": [{}], "clock": {"x": {}}} for name in (
        "freeze", "train", "seal", "board", "govern", "quick", "qualify")}  # fmt: skip
    try:
        row.ours(results)  # type: ignore[attr-defined]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        with pytest.raises(ArtifactError, match="unknown form"):
            page(results)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("seal.json", "{", "not JSON"),
        ("seal.json", "[]", "no result"),
        ("seal.json", '{"bench": "train"}', "no result"),
        ("seal.json", '{"bench": "seal", "bench": "seal"}', "twice"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, name: str, text: str, word: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=word):
        read_results(tmp_path)


def test_too_many_results_and_a_missing_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(MAX_RESULTS + 1):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(ArtifactError, match="more than"):
        read_results(tmp_path)
    assert cli.main(["bench", "figures", "--from", str(tmp_path / "none")]) == SpecError.exit_code
    assert "no such folder" in capsys.readouterr().err


def test_json_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "figures", "--from", str(RESULTS), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in told][: len(ROWS)] == [row.name for row in ROWS]


def test_results_of_other_benches_fill_their_rows() -> None:
    def row(governor: str, over: float) -> dict[str, object]:
        return {"governor": governor, "above_delta_s": over, "clock_changes_a_minute": 0.25}

    compared = {"joules_percent": -30.0, "seconds_percent": None, "samples_a_charge": 1.6}
    plan = {"plan_percent": 50, "rows": [row("kernel", 900.0), row("predictive", 0.0)], "compared": [compared]}
    run = {
        "passed": False,
        "reasons": [{"code": "delta-t", "text": ""}],
        "delta_t_kelvin": 31.24,
        "board": "Pi",
        "modelled": False,
    }
    drawn = page({"govern": {"plans": [plan]}, "qualify": run})
    for told in (
        "the kernel alone: above 30 K for 900 s a run on average, at most 900 s",
        "prediction: above 30 K for 0 s",
        "energy to equal accuracy -30 % on 1 boards and airs, planned depth 50 %",
        "samples a charge, planned depth 50 %: 1.60x",
        "0.25 a minute",
        "a run on Pi: not passed: delta-t, 31.2 K",
        "measured (`qualify`)",
    ):
        assert told in drawn
    assert "time to equal accuracy" not in drawn, "what was not reached is not told"


# --- the modelled and the quick ones ---------------------------------------------------------------------------------


def test_a_lower_clock_saves_power_and_less_energy_a_sample() -> None:
    found = lower_clock("raspberry-pi-4")
    assert found["watts_percent"] < found["joules_a_sample_percent"]
    assert found["watts_percent"] < 0 < found["battery_life_percent"]


def test_the_saving_mode_takes_longer_and_lasts_longer() -> None:
    modes = power_modes()
    assert 1 + modes["latency_percent"] / 100 == pytest.approx(R6_SLOWER, abs=0.01)
    assert modes["saving_hours"] > modes["hours"] > 0


def test_every_injected_fault_is_seen() -> None:
    assert all(faults_seen().values())


def test_on_what_is_left_more_jobs_end_when_the_cheap_ones_come_first() -> None:
    ended = orders({0: 100.0, 50: 40.0, 75: 20.0})
    first, last = (sum(ended[order].values()) for order in ("most-frozen-first", "least-frozen-first"))
    assert first > last > 0


def test_no_flipped_bit_of_a_sealed_file_is_missed() -> None:
    assert flipped_bits(100)["missed"] == 0
