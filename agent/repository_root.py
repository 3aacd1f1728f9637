"""New keys for the roles of a repository, and the root documents that name them.

A new root is signed by enough keys of the root before it and by enough of its own. They may lie on machines that never
meet: it waits in the keys folder, unserved, until `sign` has seen enough of them. Before it comes into force the
documents of a role that changes keys are signed by the old and the new key, so that boards accept them under either
root; a rotation that is cut off anywhere is completed by `sign`.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner  # public, re-exported without __all__
from tuf.api.metadata import Metadata, Root, VerificationResult  # public, re-exported without __all__

from agent.durable import make_folder, remove, remove_partials, write_atomic
from agent.errors import SpecError
from agent.repository_folder import RoleState, SignedFolder, is_complete
from agent.repository_keys import GRANTS, ONLINE, ROLES, ROOT, SHORT_KEYID, TARGETS
from agent.repository_release import LIVES


@dataclass(frozen=True, slots=True)
class RootState:
    """What became of a change.

    Attributes:
        version: of the root document that is in force now.
        in_force: the change is; else a new root waits for signatures.
        missing: what it waits for, a line each.
    """

    version: int
    in_force: bool
    missing: tuple[str, ...] = ()


def rotate(signed: SignedFolder, role: str, replace: str = "", into: Path | None = None) -> RootState:
    """New keys for a role.

    Args:
        signed: the repository with the keys at hand.
        role: one of ROLES.
        replace: of the root keys only this one, by the beginning of its id; empty: those at hand.
        into: folder for the new root key; `None`: where the one replaced lies.

    Raises:
        SpecError: `root-waits`: another change is not finished; or `replace` names no root key.
        BoardError: a key is missing or the disk fails.
        TrustError: a key is of another repository.
    """
    if role not in ROLES:
        raise SpecError(f"there is no role {role[:40]!r}; there are {', '.join(ROLES)}")
    if role == GRANTS:
        return _rotate_grants(signed)
    _check_free(signed)
    root = _successor(signed)
    if role == ROOT:
        _replace_root_keys(signed, root, replace, into)
    else:
        signer = signed.keys.make(role, signed.keys.folder)
        for keyid in list(root.signed.roles[role].keyids):
            root.signed.revoke_key(keyid, role)
        root.signed.add_key(signer.public_key, role)
    return _begin(signed, root)


def renew_root(signed: SignedFolder) -> RootState | None:
    """The same root with a new date, if enough of its keys are at hand and none waits; `None`: they are not.

    Raises:
        BoardError, TrustError: see `rotate`.
    """
    role = signed.release.root.signed.roles[ROOT]
    if signed.waiting_path() is not None or len(signed.keys.find(ROOT, role.keyids)) < role.threshold:
        return None
    return _begin(signed, _successor(signed))


def sign(signed: SignedFolder) -> RootState:
    """Sign the root that waits with every key at hand, and bring it into force once that is enough.

    Raises:
        SpecError: none waits.
        BoardError: a key of a role that changes is missing, or the disk fails.
    """
    root = signed.waiting()
    if root is None:
        if _tidy(signed):
            return RootState(signed.release.root.signed.version, in_force=True)
        raise SpecError("no root document waits for a signature", where=str(signed.keys.pending))
    return _begin(signed, root)


def _rotate_grants(signed: SignedFolder) -> RootState:
    release = signed.release
    if not signed.delegate_grants():
        assert release.targets.signed.delegations is not None  # where grants are, they are delegated
        signed.keys.need(TARGETS, release.keyids(TARGETS))
        signer = signed.keys.make(GRANTS, signed.keys.folder)
        for keyid in list(release.keyids(GRANTS)):
            release.targets.signed.revoke_key(keyid, GRANTS)
        release.targets.signed.add_key(signer.public_key, GRANTS)
    signed.commit({TARGETS, GRANTS})
    signed.keys.retire(GRANTS, signed.release.keyids(GRANTS))
    return RootState(release.root.signed.version, in_force=True)


def _check_free(signed: SignedFolder) -> None:
    path = signed.waiting_path()
    if path is not None:
        raise SpecError(
            "another change of keys is not finished",
            where=str(path),
            fix="Finish it: temperd repo sign. To give it up remove that file",
            reason="root-waits",
        )
    _tidy(signed)


def _successor(signed: SignedFolder) -> Metadata[Root]:
    root = Metadata(copy.deepcopy(signed.release.root.signed))
    root.signed.version += 1
    root.signed.expires = signed.clock() + LIVES[ROOT]
    return root


def _replace_root_keys(signed: SignedFolder, root: Metadata[Root], replace: str, into: Path | None) -> None:
    keyids = list(root.signed.roles[ROOT].keyids)
    if replace:
        named = [keyid for keyid in keyids if keyid.startswith(replace)]
        if len(named) != 1:
            there = ", ".join(keyid[:SHORT_KEYID] for keyid in keyids)
            raise SpecError(f"{replace[:80]!r} is not the beginning of one root key's id; there are {there}")
    else:
        named = [signer.public_key.keyid for signer in signed.keys.need(ROOT, keyids)]
    for keyid in named:
        folder = into or signed.keys.folder_of(keyid)
        if folder is None:
            raise SpecError(f"the root key {keyid[:SHORT_KEYID]} is not at hand", fix="Say where its successor goes")
        root.signed.revoke_key(keyid, ROOT)
        root.signed.add_key(signed.keys.make(ROOT, folder).public_key, ROOT)


def _begin(signed: SignedFolder, root: Metadata[Root]) -> RootState:
    """Sign with what is at hand and keep; go on where that is enough."""
    before = signed.release.root.signed
    for signer in signed.keys.find(ROOT, {*before.roles[ROOT].keyids, *root.signed.roles[ROOT].keyids}):
        root.sign(signer, append=True)
    make_folder(signed.keys.pending)
    remove_partials(signed.keys.pending)
    write_atomic(signed.keys.pending / f"{root.signed.version}.root.json", root.to_bytes())
    if not is_complete(before, root):
        return RootState(before.version, in_force=False, missing=_missing(before, root))
    _bring_into_force(signed, root)
    return RootState(root.signed.version, in_force=True)


def _bring_into_force(signed: SignedFolder, root: Metadata[Root]) -> None:
    changed = {r for r in ONLINE if root.signed.roles[r].keyids != signed.release.keyids(r)}

    def both(role: str) -> list[CryptoSigner]:
        if role not in changed:
            return signed.signers(role)
        signed.keys.need(role, root.signed.roles[role].keyids)
        return signed.keys.find(role, {*signed.release.keyids(role), *root.signed.roles[role].keyids})

    if changed:
        signed.commit(changed, both)
    path = signed.metadata / f"{root.signed.version}.root.json"
    write_atomic(path, root.to_bytes(), 0o644)
    signed.load()
    _tidy(signed)


def _tidy(signed: SignedFolder) -> bool:
    """Put aside what the root in force has overtaken; was there a document that waited in vain?"""
    root = signed.release.root.signed
    done = [path for path in signed.keys.pending.glob("*.root.json") if int(path.name.split(".")[0]) <= root.version]
    if not done:
        return False
    for role in (ROOT, *ONLINE):
        signed.keys.retire(role, root.roles[role].keyids)
    for path in done:  # last: it is what tells that keys have to be put aside
        remove(path)
    return True


def _missing(before: Root, root: Metadata[Root]) -> tuple[str, ...]:
    result = root.signed.get_root_verification_result(before, root.signed_bytes, root.signatures)
    parts = (("before", result.first), ("that come", result.second))
    return tuple(_lack(when, part) for when, part in parts if not part.verified)


def _lack(when: str, part: VerificationResult) -> str:
    lacking = part.threshold - len(part.signed)
    among = ", ".join(sorted(keyid[:SHORT_KEYID] for keyid in part.unsigned))
    return f"{lacking} of the root keys {when}, among {among}"


def refresh(signed: SignedFolder) -> list[RoleState]:
    """Sign anew what is in the second half of its life, the root as well, as far as keys are at hand.

    Raises:
        BoardError: the disk fails; boards see the release before.
        TrustError: a key file is broken.
    """
    before = signed.release.root.signed.version
    states = signed.refresh()
    if not states[0].problem:
        return states
    renew_root(signed)
    root = signed.state(ROOT, signed.clock(), before)
    if root.problem:
        wait = signed.waiting_path()
        why = f"due, and a root waits: {wait}" if wait else "due: temperd repo refresh with --root-key-dir"
        root = dataclasses.replace(root, problem=why)
    return [root, *states[1:]]
