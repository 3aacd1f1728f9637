"""The command `set-policy`: another policy from a console, or none again.

Requests are retained by the broker and may arrive in any order: one that was issued before the last that was obeyed
changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from agent.errors import ConfigError
from policies.policy import PolicyError
from service.answers import Answers
from service.commands import Command
from service.journal import Journal
from service.kept import recall_table
from service.logs import logger
from service.policy_file import PolicyFile

LAST = "policy-command"
"""Name in the journal's memory: when the last one obeyed was issued, and its id."""
BEGUN = "policy-begun"
"""The same: id and digest of the one that was being obeyed, so that a crash does not let it be judged anew."""

log = logger("policy")


class PolicyCommands:
    """See the module.

    Args:
        journal: remembers the last one obeyed.
        answers: tells what came of them.
        policies: what is in force.
        allowed: whether the owner of the board lets consoles set its policy.
        changed: called when another policy is in force.
    """

    def __init__(
        self, journal: Journal, answers: Answers, policies: PolicyFile, *, allowed: bool, changed: Callable[[], None]
    ) -> None:
        self._journal, self._answers, self._policies = journal, answers, policies
        self._allowed, self._changed = allowed, changed

    def take(self, command: Command) -> None:
        """Put in force what `command` asks for, remember it, answer.

        A crash on the way brings the command again, and doing it twice is doing it once.

        Raises:
            BoardError: the disk refuses: not to be acknowledged.
        """
        last = self._last()
        if not self._allowed:
            self._reject(command, "policy-fixed", "this board takes no policy by command: [policy] by_command = false")
        elif [command.issued_at, command.id] < [last.get("issued_at", 0), last.get("id", "")]:
            self._reject(command, "superseded", f"{last['id']} was issued later and is in force")
        else:
            self._set(command)

    def begun(self, command: Command) -> bool:
        """Whether a crash came while this very command was being obeyed: the policy may be in force already."""
        return self._journal.recall(BEGUN) == _begun(command)

    def _set(self, command: Command) -> None:
        asked = command.policy
        self._journal.remember(BEGUN, _begun(command))
        try:
            if asked.reset:
                changed = self._policies.reset()
            elif asked.name:
                changed = self._policies.set_shipped(asked.name)
            else:
                changed = self._policies.set_text(asked.text)
        except (PolicyError, ConfigError) as error:
            self._reject(command, "bad-policy", str(error))
            return
        self._changed()
        last = {"issued_at": command.issued_at, "id": command.id}
        self._answers.give(
            command, "succeeded", marks={LAST: json.dumps(last), BEGUN: ""}, result=self._result(changed)
        )
        log.info("policy set by a console", keyid=command.keyid[:16], **self._policies.shown(), changed=len(changed))

    def _result(self, changed: Mapping[str, tuple[object, object]]) -> dict[str, object]:
        now = self._policies.now
        values = {key: {"from": before, "to": after} for key, (before, after) in changed.items()}
        return {"name": now.policy.name, "source": str(now.source), "sha256": now.sha256, "changed": values}

    def _reject(self, command: Command, code: str, why: str) -> None:
        log.warning("policy refused", id=command.id, keyid=command.keyid[:16], reason=code, why=why)
        self._answers.give(command, "rejected", code, why, marks={BEGUN: ""})

    def _last(self) -> dict[str, object]:
        return recall_table(self._journal, LAST)


def _begun(command: Command) -> str:
    return f"{command.id} {command.digest}"
