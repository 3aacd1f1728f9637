"""The Raspberry Pi firmware's own word on throttling and supply, where the kernel shows it as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.board.devices import RESCAN_S
from agent.board.files import folders, read_int

UNDERVOLTAGE_BIT, THROTTLED_BITS = 0x1, 0xE
"""Now: clock capped, throttled, soft temperature limit. Bits 16 to 19 (since boot) say nothing of now."""


class Firmware(NamedTuple):
    """What holds now."""

    undervoltage: bool
    throttled: bool


class FirmwareFlags:
    """The file `get_throttled`. Newer kernels do not have it: then `rpi_volt` and the helper's mailbox serve.

    Args:
        sys_root: where /sys is.
    """

    def __init__(self, sys_root: Path) -> None:
        self._platform = sys_root / "devices/platform"
        self._file: Path | None = None
        self._looked_s: float | None = None

    @property
    def there(self) -> bool:
        """Whether the last reading found the file."""
        return self._file is not None

    def read(self, mono_s: float, told: int = 0) -> Firmware:
        """The flags; both false where there is no such file or it is unreadable.

        Args:
            mono_s: the monotonic clock.
            told: the same bits from elsewhere, for boards without the file.
        """
        bits = None if self._file is None else read_int(self._file, base=16)
        if bits is None and (self._looked_s is None or not 0.0 <= mono_s - self._looked_s < RESCAN_S):
            self._looked_s = mono_s
            self._file = next((path for path in self._places() if path.exists()), None)
            bits = None if self._file is None else read_int(self._file, base=16)
        bits = (bits or 0) | told
        return Firmware(bool(bits & UNDERVOLTAGE_BIT), bool(bits & THROTTLED_BITS))

    def _places(self) -> Iterator[Path]:
        # soc/soc:firmware on the Pi 4 and before; the Pi 5's soc node bears its address
        for soc in folders(self._platform, "soc"):
            yield from (folder / "get_throttled" for folder in folders(soc, f"{soc.name}:firmware"))
        yield from (folder / "get_throttled" for folder in folders(self._platform, "soc:firmware"))
