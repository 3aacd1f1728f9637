"""Becoming the user whose state it is: what root would write there the daemon could not touch afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from agent.durable import disk_errors

SERVICE_USER = "temperd"


def owner_of(state: Path) -> tuple[int, int] | None:
    """Who owns the state folder, with the group that he has of his own; the service, where there is none yet.

    The folder's group does not count: a folder that only changed hands has root's still.

    Returns:
        User and group; `None`: nobody to become.
    """
    if os.geteuid() != 0:
        return None
    try:
        found = state.stat()
    except OSError:
        try:
            user = pwd.getpwnam(SERVICE_USER)
        except KeyError:
            return None
        return user.pw_uid, user.pw_gid
    if not found.st_uid:
        return None
    try:
        return found.st_uid, pwd.getpwuid(found.st_uid).pw_gid
    except KeyError:  # of a container, say, that has no name for it
        return found.st_uid, found.st_gid


def make_state(state: Path) -> None:
    """As root: make a state folder that is missing, for the service's user. As anybody else: nothing."""
    owner = owner_of(state)
    if owner is not None and not state.exists():
        with disk_errors(state):
            state.mkdir(mode=0o700)
            os.chown(state, *owner, follow_symlinks=False)


def become_owner(state: Path) -> None:
    """As root: be the owner of the state folder from now on, with its groups. As anybody else: nothing."""
    owner = owner_of(state)
    if owner is None:
        return
    user, group = owner
    os.setgroups(_groups(user, group))
    os.setgid(group)
    os.setuid(user)


@contextlib.contextmanager
def as_owner(state: Path) -> Iterator[None]:
    """Within the block, be the owner of the state folder; for programs of one thread."""
    owner = owner_of(state)
    if owner is None:
        yield
        return
    user, group = owner
    groups = os.getgroups()
    os.setgroups(_groups(user, group))
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _groups(user: int, group: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:
        return [group]
