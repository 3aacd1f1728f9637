"""`temperd keys rotate` and `retire`: new keys for a board, and the end of the previous ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import GrantError, SpecError
from agent.keys_files import spoken
from agent.keys_identity import as_identity, rotated, without_previous
from agent.keys_stored import Found, StoredIdentity, find_identity, write_credential, write_identity
from agent.store import Store
from service.cli import config_path, say_json
from service.cli_keys import keys_folder, state_folder, tell_credential, write_document
from service.config import load_config
from service.state_lock import state_lock

if TYPE_CHECKING:
    from agent.card import Target
    from agent.keys_identity import DeviceIdentity
    from agent.trust import ModelRepository

_STOP_FIRST = "Stop the daemon first: it may hold the previous keys in memory"


def rotate(options: argparse.Namespace) -> int:
    """Make new keys; the ones before stay live until `retire`."""
    found = find_identity(keys_folder(options))
    stored = rotated(found.stored)
    _write(options, found, stored)
    public = as_identity(stored).public
    document = write_document(public)
    if options.json:
        say_json({"device": public.device, "fingerprint": public.fingerprint, "document": str(document)})
    else:
        print(
            f"new keys of {public.device} made, fingerprint {spoken(public.fingerprint)}; the previous ones stay live"
        )
        if options.credential:
            tell_credential(options.credential)
        print(f"grant the models again: temperd repo grant MODEL VERSION --for {document}; then: temperd keys retire")
    return 0


def retire(options: argparse.Namespace) -> int:
    """Drop the previous keys, once nothing on the board and no grant in the repository needs them."""
    found = find_identity(keys_folder(options))
    stored = without_previous(found.stored)
    identity, alone = as_identity(found.stored), as_identity(stored)
    state = state_folder(options)
    with state_lock(state, _STOP_FIRST):
        if not options.offline:
            _check_grants(options, state, identity, alone)
        again = Store(state / "store", *identity.storage_keys).reseal()
        _write(options, found, stored)
    gone = identity.documents[1].fingerprint
    if options.json:
        say_json({"device": alone.device, "retired": gone, "sealed_again": list(again)})
    else:
        for name in again:
            print(f"{name} sealed again under the current key")
        print(f"the keys with fingerprint {spoken(gone)} are retired")
        if options.credential:
            tell_credential(options.credential)
    return 0


def _write(options: argparse.Namespace, found: Found, stored: StoredIdentity) -> None:
    if options.credential:
        write_credential(Path(options.credential), stored)
    elif found.origin == "file":
        write_identity(found.path.parent, stored)
    else:
        raise SpecError(
            "the identity is a credential of systemd, which cannot be changed in place",
            where=str(found.path),
            fix="Write the new one to a file in memory: --credential /run/temperd/identity",
            reason="identity-read-only",
        )


def _check_grants(options: argparse.Namespace, state: Path, identity: DeviceIdentity, alone: DeviceIdentity) -> None:
    """Refuse while a model that jobs of this board named is granted to the previous keys only.

    Raises:
        SpecError: `previous-key-needed`, with the models.
        TemperdError: the repository cannot be asked.
    """
    from agent.trust import ModelRepository  # noqa: PLC0415 - the network's libraries, which `rotate` does not need

    config = load_config(config_path(options)).repository
    names = _models_of_jobs(state)
    if not names:
        return
    repository = ModelRepository(config.url, Path(config.root), state / "repository")
    repository.refresh()
    waiting = []
    for name in names:
        try:
            target = repository.find(name)
        except SpecError:  # withdrawn, or a job's mistake: no grant of it matters any more
            continue
        if _opens(repository, identity, target) and not _opens(repository, alone, target):
            waiting += [f"{target.name} {target.version}"]
    if waiting:
        raise SpecError(
            "the previous keys are still needed",
            where="grant of " + ", ".join(waiting),
            fix=f"Grant it again: temperd repo grant MODEL VERSION --for {alone.device}.device.json",
            reason="previous-key-needed",
        )


def _opens(repository: ModelRepository, identity: DeviceIdentity, target: Target) -> bool:
    try:
        repository.grant(identity, target)
    except GrantError:
        return False
    return True


def _models_of_jobs(state: Path) -> list[str]:
    from service.journal import Journal  # noqa: PLC0415 - same

    path = state / "journal.sqlite"
    if not path.exists():
        return []
    journal = Journal.peek(path)
    try:
        return sorted({str(job.spec["model"]) for job in journal.jobs() if "model" in job.spec})
    finally:
        journal.close()
