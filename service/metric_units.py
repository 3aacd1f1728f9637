"""The keys of each telemetry group: unit and type, as birth lists them.

Units are written as in UCUM where it has one (`Cel`, `K`, `Hz`, `W`, `J`, `s`, `ms`, `By`, `%`); shares from 0 to 1
and plain counts have `1`, what is no number has none. docs/mqtt.md says what the keys mean.
"""

from __future__ import annotations

_NUMBER, _BOOLEAN, _TEXT, _OBJECT = "number", "boolean", "text", "object"

_BOARD = {
    "temperature_celsius": "Cel", "ambient_celsius": "Cel", "delta_t_celsius": "K",
    "frequency_hz": "Hz", "frequency_cap_hz": "Hz", "frequency_cap_found_hz": "Hz",
    "cooling_level": "1", "charge": "1", "on_mains": _BOOLEAN, "undervoltage": _BOOLEAN, "throttled": _BOOLEAN,
    "power_watts": "W", "power_is_modelled": _BOOLEAN, "power_source": _TEXT,
    "utilisation": "1", "pressure": _OBJECT, "health": _OBJECT, "memory_available_bytes": "By", "memory_faults": "1",
    "action": _TEXT, "rule": _TEXT, "frequency_rule": _TEXT, "depth_rule": _TEXT, "notes": _OBJECT,
    "duty": "1", "least_depth_percent": "%", "micro_batch_share": "1", "batch_rule": _TEXT, "alarms": _OBJECT,
}  # fmt: skip
_TRAINING = {
    "event": _TEXT, "epoch": "1", "epochs": "1", "step": "1", "steps": "1", "samples": "1",
    "loss": "1", "score": "1", "metric": _TEXT, "frozen_layers": "1", "depth_percent": "%", "micro_batch": "1",
    "step_ms": "ms", "rss_bytes": "By", "dropped": "1", "reused": "1", "rule": _TEXT,
    "obeyed": "1", "obeyed_mono_s": "s",
}  # fmt: skip
_ENERGY = {
    "joules": "J", "joules_per_sample": "J", "gops_per_watt": "10*9/J", "operations": "1",
    "covered_s": "s", "gap_s": "s", "modelled": _BOOLEAN, "source": _TEXT, "sources": _OBJECT, "states": _OBJECT,
    "required_bytes_per_s": "By/s", "measured_bytes_per_s": "By/s",
}  # fmt: skip
_STORE = {
    "files": "1", "bytes": "By", "damaged": "1", "repaired": "1", "unrepairable": "1", "memory_errors": "1",
    "parity_made": "1", "unjudged": "1", "edac_corrected": "1", "edac_uncorrected": "1", "duration_s": "s", "ts": "s",
}  # fmt: skip
_LINK = {
    "connected": _BOOLEAN, "connections": "1", "connection_losses": "1", "takeovers": "1", "refused_total": "1",
    "dropped_total": "1", "outbox_messages": "1", "outbox_bytes": "By", "backfilled_total": "1", "unconfirmed": "1",
}  # fmt: skip
_GROUPS = {"board": _BOARD, "training": _TRAINING, "energy": _ENERGY, "store": _STORE, "link": _LINK}


def described_metrics() -> dict[str, dict[str, dict[str, str]]]:
    """By group and key: `unit` and `type` (`number`, `boolean`, `text` or `object`), as in birth."""
    return {group: {key: _described(word) for key, word in keys.items()} for group, keys in _GROUPS.items()}


def _described(word: str) -> dict[str, str]:
    plain = word in (_BOOLEAN, _TEXT, _OBJECT)
    return {"unit": "" if plain else word, "type": word if plain else _NUMBER}
