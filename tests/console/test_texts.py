"""The console's words: both languages have the same ones, pages use those that there are, closed lists are whole."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment, nodes

from agent.keys_consoles import Role
from policies.governor import RULES
from policies.reading import Action, Health
from service.alarms_kinds import KINDS, Severity
from service.asked import UPDATE_STEPS
from service.command_types import KNOWN
from service.console import rows
from service.console.texts import FOLDER, LANGUAGES, catalog, translator, words
from service.fleet.outcome import Outcome
from service.job import State, wire_status
from service.metric_units import described_metrics
from service.policy_file import Source

CONSOLE = FOLDER.parent
SCHEMAS = yaml.safe_load((CONSOLE.parents[1] / "docs/asyncapi.yaml").read_text("utf-8"))["components"]["schemas"]
OTHERS = tuple(language for language in LANGUAGES if language != "en")
FILES = sorted(path.name for path in (FOLDER / "en").glob("*.toml"))
TEMPLATES = sorted((CONSOLE / "templates").rglob("*.html"))
MODULES = sorted(CONSOLE.glob("*.py"))
SENTENCE = 5  # so many words in a row are not the same in two languages by chance
UNTIL = (
    *("temperature_celsius", "delta_t_celsius", "charge", "time", "network", "operator"),
    *("memory", "supply", "clock", "disk", "job"),
)


def part(language: str, name: str) -> dict[str, str]:
    start = f"{name.removesuffix('.toml')}."
    return {key: text for key, text in catalog(language).items() if key.startswith(start)}


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_the_scans_see_something() -> None:
    assert len(FILES) >= 5
    assert len(TEMPLATES) >= 3
    assert {use.key for use in template_uses(CONSOLE / "templates/base.html")} >= {"base.skip", "base.nav."}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("language", OTHERS)
def test_languages_have_the_same_keys(language: str, name: str) -> None:
    assert part(language, name).keys() == part("en", name).keys()


@pytest.mark.parametrize("language", OTHERS)
def test_no_language_has_more_files(language: str) -> None:
    assert sorted(path.name for path in (FOLDER / language).glob("*.toml")) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("language", OTHERS)
def test_languages_have_the_same_placeholders(language: str, name: str) -> None:
    ours, theirs = part("en", name), part(language, name)
    wrong = [key for key in ours.keys() & theirs.keys() if placeholders(ours[key]) != placeholders(theirs[key])]
    assert not wrong


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("language", OTHERS)
def test_sentences_are_translated(language: str, name: str) -> None:
    ours, theirs = part("en", name), part(language, name)
    left = [key for key, text in ours.items() if len(text.split()) >= SENTENCE and theirs.get(key) == text]
    assert not left


@pytest.mark.parametrize("language", LANGUAGES)
def test_placeholders_are_plain_names(language: str) -> None:
    odd = [key for key, text in catalog(language).items() if not all(map(str.isidentifier, placeholders(text)))]
    assert not odd


@dataclass(frozen=True)
class Use:
    """A place where a text is asked for: its key, or the beginning of it, and the names of the values it is given."""

    key: str
    values: frozenset[str]
    where: str
    begins: bool = False
    open_values: bool = False


def template_uses(path: Path) -> Iterator[Use]:
    tree = Environment(autoescape=True).parse(path.read_text("utf-8"))
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name not in ("t", "words") or not call.args:
            continue
        where, values = f"{path.name}:{call.lineno}", frozenset(pair.key for pair in call.kwargs)
        for key, begins in written(call.args[0]):
            if call.node.name == "words":
                yield Use(f"{key}.", values, where, begins=True)
            else:
                yield Use(key, values, where, begins, call.dyn_kwargs is not None)


def written(node: nodes.Node) -> Iterator[tuple[str, bool]]:
    """The text of an expression as far as it is written out, and whether more follows."""
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value, False
    elif isinstance(node, nodes.CondExpr):
        yield from written(node.expr1)
        if node.expr2 is not None:
            yield from written(node.expr2)
    elif isinstance(node, nodes.Concat) and isinstance(node.nodes[0], nodes.Const):
        yield str(node.nodes[0].value), True


def module_uses(path: Path) -> Iterator[Use]:
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "t" and call.args:
            key, where = call.args[0], f"{path.name}:{call.lineno}"
            values = frozenset(item.arg for item in call.keywords if item.arg)
            spread = len(values) < len(call.keywords)
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield Use(key.value, values, where, open_values=spread)
            elif isinstance(key, ast.JoinedStr) and isinstance(key.values[0], ast.Constant):
                yield Use(str(key.values[0].value), values, where, begins=True)


def faults(uses: Iterable[Use]) -> list[str]:
    texts, found = catalog("en"), []
    for use in uses:
        if use.begins:
            if not any(key.startswith(use.key) for key in texts):
                found.append(f"{use.where}: nothing begins with {use.key}")
        elif use.key not in texts:
            found.append(f"{use.where}: there is no {use.key}")
        elif not use.open_values and (missing := placeholders(texts[use.key]) - use.values):
            found.append(f"{use.where}: {use.key} is not given {', '.join(sorted(missing))}")
    return found


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.relative_to(CONSOLE / "templates").as_posix())
def test_templates_use_texts_that_there_are(path: Path) -> None:
    assert not faults(template_uses(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_use_texts_that_there_are(path: Path) -> None:
    assert not faults(module_uses(path))


def test_a_fault_would_be_seen() -> None:
    wrong = [
        Use("base.nothing", frozenset(), "x"),
        Use("nowhere.", frozenset(), "x", begins=True),
        Use("base.pager.where", frozenset(["page"]), "x"),
    ]
    assert len(faults(wrong)) == len(wrong)


@pytest.mark.parametrize(("script", "block"), [("base.js", "base.script"), ("fleet*.js", "fleet")])
def test_scripts_use_texts_that_there_are(script: str, block: str) -> None:
    source = "\n".join(path.read_text("utf-8") for path in (CONSOLE / "static").glob(script))
    name = "TEXTS" if block.startswith("base") else rf"TEXTS\.{block}"
    used = set(re.findall(name + r"""(?:\.|\[")([a-z][\w.-]*)""", source))
    assert used
    assert used - words("en", block).keys() == set()


STATUS = SCHEMAS["Status"]["properties"]
LISTS: dict[str, Iterable[str]] = {
    "status": {
        *STATUS["status"]["enum"],
        *(wire_status(state).status for state in State),
        *Outcome,
        *rows.State,
    },
    "status.step": ({*STATUS["step"]["enum"]} | {wire_status(state).step for state in State} | {*UPDATE_STEPS}) - {""},
    "status.type": KNOWN,
    "status.health": Health,
    "status.severity": Severity,
    "status.action": [action.name for action in Action],
    "status.source": Source,
    "status.until": UNTIL,
    "rule": {*RULES, "run", "unlimited", "plan", "job.temperature"},
    "alarm": KINDS,
    "alarm.advice": KINDS,
    "reason": {*SCHEMAS["ReasonCode"]["enum"]} - {""},
    "base.role": Role,
    "unit": {key["unit"] for keys in described_metrics().values() for key in keys.values()} - {""},
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_closed_lists_have_words(language: str, name: str) -> None:
    assert {str(item) for item in LISTS[name]} - words(language, name).keys() == set()


def test_what_work_waits_for_is_listed_whole() -> None:
    assert set(UNTIL) == set(SCHEMAS["Until"]["properties"]["what"]["enum"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_words_are_of_nothing(language: str) -> None:
    """A reason or an alarm that no board sends any more is dead weight."""
    reasons = {*SCHEMAS["ReasonCode"]["enum"], *LISTS["rule"]}
    assert words(language, "reason").keys() - reasons == set()
    assert {key for key in words(language, "alarm") if "." not in key} == set(KINDS)


def test_a_translator_fills_texts_and_falls_back() -> None:
    t = translator("en")
    assert t("base.pager.where", page=2, pages=7) == "Page 2 of 7"
    assert t("status.no-such", "what it said") == "what it said"
    assert t("status.{x}", "{x}") == "{x}"
    with pytest.raises(KeyError):
        t("base.no-such")
