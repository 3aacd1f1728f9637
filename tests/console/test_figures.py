"""The page of reference figures is that of docs/figures, in both languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import ArtifactError
from service.cli_figures import read_results
from service.console import figures_data
from service.console.texts import LANGUAGES, catalog

ROOT = Path(__file__).parents[2]


def test_the_shipped_file_is_in_step_with_the_results() -> None:
    made = figures_data.made_from(read_results(ROOT / "docs" / "figures"))
    fix = "run: python -m service.console.figures_data docs/figures"
    assert figures_data.FILE.read_text("utf-8") == made, fix


def test_what_is_not_measured_has_no_figure_and_links_are_words() -> None:
    body = json.loads(figures_data.made_from({}))
    assert body["origins"] == []
    assert [row["ours"] for row in body["rows"] if row["id"] == "R7"] == [[]]
    (link,) = [row for row in body["rows"] if row["id"] == "R18"]
    assert link["ours"][0]["text"].endswith("see mqtt.md")


def test_a_result_of_an_unknown_form_is_told() -> None:
    with pytest.raises(ArtifactError, match="R1 have an unknown form"):
        figures_data.made_from({"freeze": {"model": "m"}})


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_way_in_which_a_figure_came_about_has_a_word(language: str) -> None:
    ways = {figure["how"] for row in figures_data.figures()["rows"] for figure in row["ours"]} - {""}
    assert {"measured", "modelled"} <= ways
    words = catalog(language)
    assert {f"figures.how.{way.replace(' ', '-')}" for way in ways} <= set(words)
