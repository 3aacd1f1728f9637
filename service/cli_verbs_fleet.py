"""The parser of `temperd fleet`."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_group, add_verb

_SENT = ("fine-tune", "cancel", "pause", "resume", "scrub", "set-policy", "qualify")
_TEXT = """Commands to boards over MQTT, signed with a console key.
example: temperd fleet send my-board fine-tune job.toml --key alice.key --broker broker.local --watch"""


def fleet_verbs(verbs: Verbs) -> None:
    """Add `fleet` and its verbs."""
    kinds = add_group(verbs, "fleet", "signed commands to boards", _TEXT)
    send = add_verb(kinds, "send", "cli_fleet:send", "Sign a command and send it to one board.", config=False)
    send.add_argument("device", help="the board's name")
    send.add_argument("type", choices=_SENT, help="what to do")
    text = "TOML file of a job; a job's id; minutes to qualify; a policy: file, one that ships, or reset"
    send.add_argument("argument", metavar="SPEC|JOB|POLICY|MINUTES", nargs="?", default="", help=text)
    send.add_argument("--key", metavar="FILE", required=True, help="console key, NAME.key")
    send.add_argument("--broker", default="localhost", metavar="HOST[:PORT]", help="MQTT broker (localhost:1883)")
    send.add_argument("--tenant", default="default")
    send.add_argument("--valid", type=int, default=3600, metavar="SECONDS", help="the command expires after (3600)")
    send.add_argument("--watch", action="store_true", help="follow until the job ends; the exit code is its outcome")
