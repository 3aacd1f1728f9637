"""How much boards read of a repository's metadata: the publisher refuses to write more, so both sides look here."""

from __future__ import annotations

MAX_ROOT_BYTES = 64 << 10  # four keys and their signatures have 3 KB
MAX_TIMESTAMP_BYTES = 16 << 10  # one entry has 500 bytes
MAX_SNAPSHOT_BYTES = 64 << 10  # one entry has 500 bytes; room for delegations
MAX_TARGETS_BYTES = 5_000_000  # some 150 models, as a card with a feature vector has 30 KB, or 30,000 grants
MAX_ROOT_ROTATIONS = 32  # from the pinned root on: a rotation a year outlives the board
MAX_DELEGATIONS = 4  # grants are one delegated role
