"""The parser of `temperd fleet`."""

from __future__ import annotations

import argparse

from service.cli_verbs import Verbs, add_broker_options, add_group, add_verb

_TEXT = """Boards over MQTT: see them, send them commands signed with a console key, roll out to many. docs/fleet.md
examples:
  temperd fleet list --broker broker.local
  temperd fleet send my-board fine-tune job.toml --key alice.key --broker broker.local --watch
  temperd fleet roll-out job.toml --group plant-1 --canary 10% --key alice.key
TEMPERD_BROKER or a profile (~/.config/temperd/fleet.toml) saves the options that are always the same."""
_SEND = """Sign a command and send it to one board or several.
TYPE is fine-tune SPEC.toml, cancel|pause|resume JOB, qualify [MINUTES], scrub, collect-report,
set-policy FILE|NAME|reset, rollback [SHA256|base], promote JOB, evaluate DATA|SPEC.toml,
update-agent [VERSION|SPEC.toml], or update-system NAME[=VERSION]|SPEC.toml.
Each board gets a command of its own, with its own id.
With --watch the exit code is the outcome: 0 all succeeded, 1 one failed, 3 one was refused and none failed."""
_LIST = """Every board of a tenant: on the broker, and remembered of earlier looks.
`gone`: the broker does not know it any more. Heat is the latest telemetry; an idle board sends it once a minute."""
_WATCH = """A live table of all boards, or of those named; Ctrl-C ends it. With --json one line per change."""
_WAIT = """Wait for commands, or for a roll-out's, to end.
Exit code 0: all succeeded; 1: one failed, or the time ran out; 3: one was refused and none failed."""
_FORGET = """Forget boards that were taken out of service: they leave lists and groups.
What the broker still keeps of a board brings it back: clear its retained messages there."""
_ROLL_OUT = """One command to many boards, in waves: canaries first, then the rest, until too many did not succeed.
Every command is kept in the state file before it is sent: after a crash --resume sends the same bytes, and no board
runs its command twice. Boards that are offline have until --valid ends.
Exit code 0: all succeeded; 1: stopped, or one failed; 3: one was refused and none failed.
examples:
  temperd fleet roll-out job.toml --group plant-1 --canary 10% --stop-at 20% --key alice.key
  temperd fleet roll-out set-policy summer.toml --board pi-1 --board pi-2 --key alice.key
  temperd fleet roll-out --resume 0192f0c1-...      after a crash, Ctrl-C or a stop; a new --stop-at accepts canaries
  temperd fleet roll-out --abort 0192f0c1-...       send no more, cancel what is open"""


def fleet_verbs(verbs: Verbs) -> None:
    """Add `fleet` and its verbs."""
    kinds = add_group(verbs, "fleet", "boards over MQTT: list, watch, signed commands, roll-outs", _TEXT)
    send = add_verb(kinds, "send", "cli_fleet:send", _SEND, config=False)
    send.add_argument("words", metavar="BOARD... TYPE [ARGUMENT]", nargs="+", help="boards, then what to do")
    _signing(send, valid_s=3600)
    send.add_argument("--watch", action="store_true", help="follow until all have ended; the exit code is the outcome")
    show = _view_verbs(kinds)
    wait = add_verb(kinds, "wait", "cli_fleet_view:wait", _WAIT, config=False)
    wait.add_argument("ids", metavar="ID", nargs="*", help="ids of commands, as `fleet send` printed them")
    wait.add_argument("--roll-out", default="", metavar="ID", help="all commands of a roll-out")
    wait.add_argument("--timeout", type=float, default=0.0, metavar="SECONDS", help="give up after (0: never)")
    roll_out = _roll_out_verb(kinds)
    forget = add_verb(kinds, "forget", "cli_fleet_view:forget", _FORGET, config=False)
    forget.add_argument("boards", metavar="BOARD", nargs="+", help="their names")
    for verb in (send, *show, wait, roll_out, forget):
        add_broker_options(verb)
        verb.add_argument("--state", default="", metavar="FILE", help="state (~/.local/state/temperd/fleet.sqlite)")
    _group_verbs(kinds)


def _signing(verb: argparse.ArgumentParser, *, valid_s: int) -> None:
    verb.add_argument("--key", metavar="FILE", default="", help="console key, NAME.key (profile)")
    verb.add_argument("--group", default="", metavar="NAME", help="all boards of a group")
    text = "refuse unless it holds: active_model=SHA256 (empty: none), policy=SHA256, state_version=N; repeatable"
    verb.add_argument("--expect", action="append", default=[], metavar="KEY=VALUE", help=text)
    verb.add_argument("--valid", type=int, default=valid_s, metavar="SECONDS", help=f"expires after ({valid_s})")


def _view_verbs(kinds: Verbs) -> tuple[argparse.ArgumentParser, ...]:
    boards = add_verb(kinds, "list", "cli_fleet_view:list_boards", _LIST, config=False)
    boards.add_argument("--group", default="", metavar="NAME", help="only boards of a group")
    boards.add_argument("--offline", action="store_true", help="only what is not online")
    boards.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="look for so long at least (0)")
    show = add_verb(kinds, "show", "cli_fleet_view:show_board", "All that is known of one board.", config=False)
    show.add_argument("board", metavar="BOARD", help="its name")
    show.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="look for so long at least (0)")
    watch = add_verb(kinds, "watch", "cli_fleet_view:watch", _WATCH, config=False)
    watch.add_argument("boards", metavar="BOARD", nargs="*", help="boards (all)")
    watch.add_argument("--group", default="", metavar="NAME", help="boards of a group")
    watch.add_argument("--for", dest="seconds", type=float, default=0.0, metavar="SECONDS", help="end after (never)")
    return boards, show, watch


def _roll_out_verb(kinds: Verbs) -> argparse.ArgumentParser:
    verb = add_verb(kinds, "roll-out", "cli_fleet_roll_out:roll_out", _ROLL_OUT, config=False)
    verb.add_argument("words", metavar="JOB.toml | TYPE [ARGUMENT]", nargs="*", help="what to do, as for `fleet send`")
    _signing(verb, valid_s=86400)
    verb.set_defaults(valid=None)  # what is not given is what `Terms` and `Rules` say, or what a roll-out has
    verb.add_argument("--board", dest="boards", action="append", default=[], metavar="NAME", help="a board; repeatable")
    first = verb.add_mutually_exclusive_group()
    first.add_argument("--canary", default="", metavar="SHARE", help="boards that go first, alone, e.g. 10%% (none)")
    first.add_argument("--canary-count", type=int, default=0, metavar="N", help="the same as a number")
    text = "stop where canaries have not ended after (0: when their commands expire)"
    verb.add_argument("--wait-canary", type=float, metavar="SECONDS", help=text)
    verb.add_argument("--parallel", type=int, metavar="N", help="boards at work at a time (50)")
    text = "stop when this share of the boards that ended did not succeed (20%%)"
    verb.add_argument("--stop-at", default="", metavar="SHARE", help=text)
    text = "boards that must have ended before the share is judged (5); canaries are judged by themselves"
    verb.add_argument("--stop-min", type=int, metavar="N", help=text)
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--resume", default="", metavar="ID", help="go on with a roll-out")
    which.add_argument("--abort", default="", metavar="ID", help="end a roll-out and cancel what is open")
    which.add_argument("--show", default="", metavar="ID", help="where a roll-out stands, by the state file alone")
    which.add_argument("--list", action="store_true", help="all roll-outs of the tenant in the state file")
    verb.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="with --abort: wait for ends (60)")
    return verb


def _group_verbs(kinds: Verbs) -> None:
    kinds_of_group = add_group(kinds, "group", "groups of boards, kept in the state file", "Groups of boards.")
    for name, text in (("add", "Put boards into a group."), ("remove", "Take boards out of a group, or drop it.")):
        verb = add_verb(kinds_of_group, name, f"cli_fleet_view:group_{name}", text, config=False)
        verb.add_argument("group", metavar="GROUP", help="its name: a-z, 0-9, dash")
        verb.add_argument("boards", metavar="BOARD", nargs="+" if name == "add" else "*", help="names of boards")
    listed = add_verb(kinds_of_group, "list", "cli_fleet_view:group_list", "Groups and their boards.", config=False)
    listed.add_argument("group", metavar="GROUP", nargs="?", default="", help="only this one")
    for verb in kinds_of_group.choices.values():
        add_broker_options(verb)
        verb.add_argument("--state", default="", metavar="FILE", help="state (~/.local/state/temperd/fleet.sqlite)")
