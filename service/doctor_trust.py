"""What `temperd doctor` says of keys and trust: identity, pinned root, consoles, who may read the state."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ArtifactError, BoardError
from agent.keys_consoles import trusted_consoles
from agent.keys_stored import CREDENTIAL, find_identity
from service.doctor import Finding, Scene, bad, ok, refused, warn

SOON_S = 30 * 86400  # a root that expires within a month is due for its yearly renewal
MAX_FILES = 20_000  # of a state folder that are looked at; a full store and a month of telemetry have some hundreds
MAX_DEPTH = 6
_LOAD = ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted", "ImportCredential")
_STATE_WHY = "keys, models and the journal lie there; the daemon ends at its start where it cannot write"


def identity(scene: Scene) -> Iterator[Finding]:
    """Private keys of the board, and whether they bear the configured name."""
    why = "grants and commands are bound to the identity; without it the daemon does not start (exit code 78)"
    try:
        found = find_identity(scene.state / "keys")
    except (BoardError, ArtifactError) as error:
        if error.code == "key-missing" and _by_credential(scene):
            yield ok("identity", f"handed over by systemd as the credential {CREDENTIAL}")
            return
        mend = f"{scene.daemon}temperd keys init" if error.code == "key-missing" else error.fix
        yield bad("identity", f"{error.what} ({error.where})", why, mend)
        return
    name = found.stored.device
    if name != scene.config.device.name:
        what = f"the identity is that of {name!r}, the configuration names {scene.config.device.name!r}"
        yield bad("identity", what, why, f'device.name = "{name}" in {scene.config_path}')
        return
    rotation = len(found.stored.keys) > 1
    yield ok("identity", f"{name}, from a {found.origin}" + ("; a rotation is open" if rotation else ""))


def _by_credential(scene: Scene) -> bool:
    """The unit asks for it, and it is there: seen by root, or the daemon would not run."""
    asked = any(CREDENTIAL in scene.unit.get(name, "") for name in _LOAD)
    return asked and (scene.credential or scene.live is not None)


def repository_root(scene: Scene) -> Iterator[Finding]:
    """The pinned root of trust."""
    from agent.keys_root import read_root  # noqa: PLC0415 - loads the TUF library

    path = Path(scene.config.repository.root)
    why = "a job takes no model that this document does not vouch for"
    try:
        root = read_root(path)
    except (BoardError, ArtifactError) as error:
        mend = f"{scene.daemon}temperd keys trust-repository 1.root.json"
        yield bad("root", f"{error.what} ({error.where})", why, mend if error.code == "key-missing" else error.fix)
        return
    left_s = root.expires.timestamp() - scene.now
    told = f"version {root.version}, expires {root.expires:%Y-%m-%d}"
    if left_s < SOON_S:  # newer roots are fetched along the chain, so an expired pin is no end
        what = f"{told}: {'expired' if left_s <= 0 else 'soon'}"
        yield warn(
            "root", what, "the publisher renews it; newer ones are fetched", "temperd repo refresh, at the publisher"
        )
        return
    yield ok("root", told)


def consoles(scene: Scene) -> Iterator[Finding]:
    """Whose commands are obeyed."""
    folder = Path(scene.config.commands.trusted_consoles)
    try:
        found = trusted_consoles(folder)
    except (BoardError, ArtifactError) as error:
        yield refused("consoles", error, "while it is there no command is obeyed")
        return
    if not found:
        mend = f"{scene.daemon}temperd keys trust NAME.pub.json"
        yield warn("consoles", f"none is trusted ({folder})", "the board obeys nobody over MQTT", mend)
        return
    yield ok("consoles", ", ".join(f"{one.name} ({one.role}, {one.keyid[:8]})" for one in found))


def state_files(scene: Scene) -> Iterator[Finding]:
    """Whether the state belongs to the daemon's user, all of it, and to nobody else."""
    state = scene.state
    try:
        found = state.stat()
    except FileNotFoundError:
        mend = f"install -d -m 0700 {state}, as the daemon's user"
        yield warn("state", f"{state} is not there", "it is made at the daemon's first start", mend)
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        yield bad("state", f"others may write into {state} (mode {mode:04o})", _STATE_WHY, f"chmod 0700 {state}")
        return
    owner = _name(found.st_uid)
    foreign = [path for path in _below(state) if path.lstat().st_uid != found.st_uid]
    if foreign:
        rest = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        what = f"{foreign[0]}{rest} belong to another user than {owner}"
        yield bad("state", what, _STATE_WHY, f"sudo chown -R {owner}: {state}")
        return
    if not os.access(state, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        yield warn("state", f"{scene.user} may not read {state}", "nothing can be said of it", "sudo temperd doctor")
        return
    if mode & 0o077:
        why = "names of models and sizes can be seen; keys and the journal are closed by themselves"
        yield warn("state", f"others may enter {state} (mode {mode:04o})", why, f"chmod 0700 {state}")
        return
    yield ok("state", f"{state}, all of {owner}")


def _below(state: Path) -> Iterator[Path]:
    seen = 0
    for folder, names, files in os.walk(state):
        if len(Path(folder).relative_to(state).parts) >= MAX_DEPTH:
            names.clear()
        for name in (*names, *files):
            seen += 1
            if seen > MAX_FILES:
                return
            path = Path(folder, name)
            if path.is_symlink() or path.exists():  # a daemon beside us renames and removes
                yield path


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
