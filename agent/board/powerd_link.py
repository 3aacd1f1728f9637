"""The daemon's end of temperd-powerd: asks for limits, waits briefly, and never twice in one round."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from agent.board.lever_files import capped_policy, cooled_device
from agent.board.powerd_wire import MAX_REPLY_BYTES, VERSION, Refusal, parse_reply
from agent.errors import BoardError

WAIT_S = 0.2  # a round: the governor's loop stands still meanwhile; an answer takes about a millisecond
LATE_ROUNDS = 10  # without an answer: a helper that systemd has to start needs one or two on a slow board
WAITING = "powerd-waiting"
"""Code of the error that says: no answer yet, ask in the next round."""


class PowerdLink:
    """A connection that is made when it is needed and made again when it broke.

    Args:
        path: the helper's socket.
        sys_root: where /sys is for us; a helper that serves another tree is refused.
        wait_s: for all answers of one round together.
        clock: monotonic seconds.

    Attributes:
        connections: how many were made so far; a limit set over an earlier one was put back by the helper.
    """

    def __init__(
        self, path: Path, sys_root: Path, wait_s: float = WAIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._sys_root, self._round_s, self._clock = path, sys_root, wait_s, clock
        self._sock: socket.socket | None = None
        self._left_s = wait_s
        self._last_id = 0
        self._awaited: int | None = None
        self._late_rounds = 0
        self._greeted, self._silent = False, False
        self.connections = 0

    def next_round(self) -> None:
        """A new round of the governor begins: there is time to wait again."""
        self._left_s = self._round_s
        if self._awaited is None:
            self._late_rounds = 0
            return
        self._late_rounds += 1
        if self._late_rounds > LATE_ROUNDS:
            self.close()
            self._silent = True

    def set(self, key: str, value: int) -> None:
        """Ask for `value` in the file `key` below the sysfs root; read it back: other programs write there too.

        Raises:
            BoardError: refused, or no helper; with code `WAITING`, not answered yet.
        """
        if (policy := capped_policy(key)) is not None:
            self._ask("set-cap", policy=policy, khz=value)
        elif (device := cooled_device(key)) is not None:
            self._ask("set-cooling", device=device, level=value)
        else:
            raise BoardError("temperd-powerd sets clock caps and cooling levels only", where=key)

    def restore(self) -> None:
        """Ask for everything to be as it was found.

        Raises:
            BoardError: as `set`.
        """
        self._ask("restore")

    def throttled(self) -> int:
        """The Raspberry Pi firmware's throttling bits.

        Raises:
            BoardError: as `set`; or this board has none.
        """
        bits = self._ask("throttled").get("bits")
        if not isinstance(bits, int):
            raise BoardError("temperd-powerd answers in a way this version does not know", where=str(self._path))
        return bits

    def close(self) -> None:
        """Hang up: the helper puts back what it still holds for us."""
        if self._sock:
            self._sock.close()
        self._sock, self._awaited, self._greeted, self._late_rounds = None, None, False, 0

    def _ask(self, verb: str, **arguments: int) -> dict[str, object]:
        for attempt in (1, 2):
            try:
                self._greet()
                return self._asked(verb, arguments)
            except TimeoutError as error:
                reason = None if self._silent else WAITING
                raise BoardError("temperd-powerd does not answer", where=str(self._path), reason=reason) from error
            except Refusal as refusal:
                raise BoardError(f"temperd-powerd refuses: {refusal}", where=refusal.code) from refusal
            except OSError as error:
                had_been_there = self._greeted
                self.close()
                if attempt > 1 or not had_been_there:  # one that hung up while idle is called again at once
                    raise self._absent(error) from error
        raise AssertionError  # the second attempt returns or raises

    def _absent(self, error: OSError) -> BoardError:
        why = {FileNotFoundError: "is not there", PermissionError: "may not be asked by this user"}.get(type(error))
        why = why or f"cannot be asked: {error.strerror or error}"
        return BoardError(f"temperd-powerd {why}", where=str(self._path), fix="See docs/powerd.md")

    def _greet(self) -> None:
        """Be connected to a helper of our version that serves our tree.

        Raises:
            OSError: there is none.
            TimeoutError: it has not answered yet.
            Refusal: it is another one.
        """
        if self._greeted:
            return
        if self._sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.settimeout(self._wait_s())
                sock.connect(str(self._path))
            except OSError:
                sock.close()
                raise
            self._sock = sock
            self._send("hello", {})
        try:
            reply = self._reply()
            if reply.get("version") != VERSION or reply.get("sys_root") != str(self._sys_root):
                served = f"version {reply.get('version')}, for {reply.get('sys_root')}"
                raise Refusal("other-helper", f"it is another helper: {served}")  # noqa: TRY301 - one way out
        except Refusal:
            self.close()
            raise
        self._greeted = True
        self.connections += 1

    def _asked(self, verb: str, arguments: dict[str, int]) -> dict[str, object]:
        if self._awaited is not None:  # the answer to an earlier round's question; what became of it was read back
            with contextlib.suppress(Refusal):
                self._reply()
        self._send(verb, arguments)
        return self._reply()

    def _send(self, verb: str, arguments: dict[str, int]) -> None:
        assert self._sock
        self._sock.settimeout(self._wait_s())
        self._last_id += 1
        self._sock.send(json.dumps({"id": self._last_id, "verb": verb, **arguments}).encode())
        self._awaited = self._last_id

    def _reply(self) -> dict[str, object]:
        """The answer awaited.

        Raises:
            TimeoutError: not yet.
            OSError: the connection broke.
            Refusal: it is an error.
        """
        assert self._sock
        before = self._clock()
        try:
            self._sock.settimeout(self._wait_s())
            packet = self._sock.recv(MAX_REPLY_BYTES + 1)
        finally:
            self._left_s -= self._clock() - before
        if not packet:
            raise ConnectionResetError("the helper hung up")
        reply = parse_reply(packet)
        awaited, self._awaited, self._silent = self._awaited, None, False
        if reply.get("ok") is not True:
            raise Refusal(str(reply.get("error")), str(reply.get("message")))
        if reply.get("id") != awaited:
            raise ConnectionResetError("the helper answers another question")
        return reply

    def _wait_s(self) -> float:
        if self._left_s <= 0:
            raise TimeoutError
        return self._left_s
