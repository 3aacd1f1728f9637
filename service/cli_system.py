"""`temperd release publish-system`: a system image for boards that RAUC updates, signed on a laptop or in CI."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.errors import SpecError
from policies.strict import TableError
from service.cli import say_json


def publish_system(options: argparse.Namespace) -> int:
    """Sign a bundle into a repository."""
    from agent.publish_system import publish_system as publish  # noqa: PLC0415 - what other verbs must not load
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - same
    from agent.system_card import SystemCard  # noqa: PLC0415 - same

    try:
        card = SystemCard(options.name, options.version, options.compatible, options.security_floor)
        table = card.table()
    except TableError as error:
        raise SpecError(error.what, where=f"--{error.key.replace('_', '-')}") from error
    publish(Publisher.open(Path(options.repo), Path(options.keys), utc_now), Path(options.file), card)
    if options.json:
        say_json({**table, "path": card.path})
    else:
        print(f"published {card.name} {card.version} for boards that RAUC calls {card.compatible!r}: {card.path}")
    return 0
