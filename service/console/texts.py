"""The console's words in the languages it speaks: one TOML file for each language and part of the console."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

LANGUAGES = ("en", "vi")
FOLDER = Path(__file__).parent / "texts"


@functools.cache
def catalog(language: str) -> Mapping[str, str]:
    """All texts of a language by key: `<file>.<key>`, or `<file>.<table>.<key>`.

    Raises:
        TypeError: a value is neither a text nor a table of texts.
    """
    found: dict[str, str] = {}
    for path in sorted((FOLDER / language).glob("*.toml")):
        _add(found, path.stem, tomllib.loads(path.read_text("utf-8")))
    # Work waits for rules too: their names are reason codes, with the same words.
    return {
        f"reason.{key.removeprefix('rule.')}": text for key, text in found.items() if key.startswith("rule.")
    } | found


def _add(found: dict[str, str], prefix: str, table: Mapping[str, object]) -> None:
    for key, value in table.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict):
            _add(found, name, value)
        elif isinstance(value, str):
            found[name] = value
        else:
            raise TypeError(f"{name} is no text")


@functools.cache
def words(language: str, prefix: str) -> Mapping[str, str]:
    """All texts below a key, by the rest of their keys: what a page hands to its scripts."""
    start = f"{prefix}."
    return {key.removeprefix(start): text for key, text in catalog(language).items() if key.startswith(start)}


def translator(language: str) -> Callable[..., str]:
    """A function from a key and named values to a text.

    A key without a text raises KeyError: a test holds all languages and all uses against each other. A key that comes
    from outside (a status, a reason code) is looked up with `or_else`, which is given back where there is none.
    """
    texts = catalog(language)

    def translate(key: str, or_else: str | None = None, /, **values: object) -> str:
        text = texts[key] if or_else is None else texts.get(key, or_else)
        return text.format(**values) if values else text

    return translate
