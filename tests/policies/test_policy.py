from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.policy import MAX_DOTS, MAX_POLICY_BYTES, Policy, PolicyError, differences, parse_policy

FOLDER = Path(__file__).parents[2] / "policies"


def test_empty_text_is_the_default_policy() -> None:
    assert parse_policy("") == Policy()


def test_default_file_writes_out_every_key_with_its_default() -> None:
    text = (FOLDER / "default.toml").read_text(encoding="utf-8")
    assert parse_policy(text) == Policy()
    assert tomllib.loads(text) == dataclasses.asdict(Policy())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_policy_parses_and_bears_its_file_name(path: Path) -> None:
    assert parse_policy(path.read_text(encoding="utf-8")).name == path.stem


def test_a_key_left_out_keeps_the_default_of_its_own_stage() -> None:
    policy = parse_policy("[thermal.hot]\nduty = 0.4\n")
    assert policy.thermal.hot == dataclasses.replace(Policy().thermal.hot, duty=0.4)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[thermal.slow]\ndelta_kelvn = 30.0", "thermal.slow.delta_kelvn", "did you mean 'delta_kelvin'"),
        ("[thermals]", "thermals", "did you mean 'thermal'"),
        ("[thermal]\nhysteresis_kelvin = 'x'", "thermal.hysteresis_kelvin", "a number"),
        ("[thermal.slow]\nduty = 0.0", "thermal.slow.duty", "outside"),
        ("[thermal.slow]\nduty = nan", "thermal.slow.duty", "finite"),
        ("[thermal.slow]\nleast_depth_percent = 60", "thermal.slow.least_depth_percent", "not one of"),
        ("[thermal.slow]\ndelta_kelvin = 34.0", "thermal.hot.delta_kelvin", "trips must rise"),
        ("[thermal.pause]\nabsolute_celsius = 70.0", "thermal.hot.absolute_celsius", "trips must rise"),
        ("[thermal]\nreverify_celsius = 79.0", "thermal.reverify_celsius", "must lie between"),
        ("[thermal]\nabort_celsius = 84.0", "thermal.reverify_celsius", "must lie between"),
        ("[thermal.hot]\nfrequency_ratio = 0.9", "thermal.hot.frequency_ratio", "milder"),
        ("[thermal.hot]\nduty = 0.8", "thermal.hot.duty", "milder"),
        ("[thermal.hot]\nleast_depth_percent = 25", "thermal.hot.least_depth_percent", "milder"),
        ("[thermal.hot]\ncooling_share = 0.1", "thermal.hot.cooling_share", "milder"),
        (
            "[thermal]\nhysteresis_kelvin = 3.0\n[thermal.slow]\ndelta_kelvin = 2.0",
            "thermal.hysteresis_kelvin",
            "never left",
        ),
        ("[battery]\npause_charge = 0.2", "battery.pause_charge", "must be below"),
        ("[battery]\nlow_charge = 0.99", "battery.hysteresis_charge", "full battery"),
        ("[battery]\norder = 'random'", "battery.order", "most-frozen-first"),
        ("[freezing]\nsimilarity_over_50 = 0.9", "freezing.similarity_over_50", "must rise"),
        ("thermal = 3", "thermal", "must be a table"),
        ("not toml", "", "not TOML"),
        ("x = " + "[" * 5000, "", "not TOML"),
        ("thermal = " + "9" * 5000, "", "not TOML"),
        ("name = '\ud800'", "", "not UTF-8"),
        ("k" * 1000 + " = 1", "k" * 200, "unknown key"),
        ("[predictive]\ndelta_kelvin = 36.0", "predictive.delta_kelvin", "above thermal.pause.delta_kelvin (35.0)"),
        ("#" * (MAX_POLICY_BYTES + 1), "", "longer"),
    ],
)
def test_refusals_name_the_key_and_what_is_wrong(text: str, key: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    assert caught.value.key == key
    assert says in caught.value.what


def test_a_prediction_that_is_off_may_aim_anywhere() -> None:
    assert not parse_policy("[predictive]\nenabled = false\ndelta_kelvin = 36.0").predictive.enabled


def test_differences_name_the_keys_with_both_values() -> None:
    after = parse_policy('name = "mine"\n[thermal.hot]\nduty = 0.4\n[schedule]\nquiet = "22:00-07:00"')
    assert differences(Policy(), after) == {
        "name": ("default", "mine"),
        "thermal.hot.duty": (0.5, 0.4),
        "schedule.quiet": ("", "22:00-07:00"),
    }
    assert differences(after, after) == {}


def flat(table: dict[str, object], path: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def shown(value: object) -> str:
    """A default as docs/policy.md writes it."""
    if value == "":
        return "none"
    return f"`{value}`" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:g}"


def test_the_page_lists_every_key_with_its_default() -> None:
    page = (FOLDER.parent / "docs" / "policy.md").read_text(encoding="utf-8")
    listed: dict[str, str] = {}
    for table in re.split(r"^\| Key of `\[", page, flags=re.MULTILINE)[1:]:
        section, _, rest = table.partition("]`")
        rows = rest.partition("\n\n")[0]
        found = re.findall(r"^\| `([a-z0-9_]+)` \| ([^|]+) \|", rows, re.MULTILINE)
        listed |= {f"{section}.{key}": default.strip() for key, default in found}
    keys = flat(dataclasses.asdict(Policy()))
    del keys["name"]
    assert listed == {key: shown(value) for key, value in keys.items()}


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_policy_or_refused_with_a_key(text: str) -> None:
    try:
        policy = parse_policy(text)
    except PolicyError as error:
        refused = error
    else:
        assert differences(policy, policy) == {}
        return
    assert refused.what


def test_a_key_of_thousands_of_parts_is_refused_before_it_is_read() -> None:
    text = f'name = "x"\na{".a" * MAX_DOTS}.a = 1'
    with pytest.raises(PolicyError, match="line 2"):
        parse_policy(text)
    with pytest.raises(PolicyError, match="unknown key"):
        parse_policy(f"a{'.a' * MAX_DOTS} = 1")
