"""Keys, as one face: the board's identity, the consoles it obeys, and grants that carry a model's data key to it.

keys_files      who may read and write a key file
keys_stored     the identity as it is stored, and where it is found; without cryptography
keys_identity   the identity in use, its public document, rotation
keys_grants     data keys wrapped for one board
keys_consoles   keys of people, and whom the board obeys
"""

from __future__ import annotations

from agent.keys_consoles import (
    KEY_SUFFIX,
    MAX_CONSOLES,
    create_console_key,
    keyid,
    load_console_key,
    load_trusted_consoles,
)
from agent.keys_files import KEY_BYTES, MAX_KEY_FILE_BYTES, read_secret
from agent.keys_grants import MAX_GRANT_BYTES, make_grant, open_grant
from agent.keys_identity import (
    DeviceIdentity,
    PublicDocument,
    create_identity,
    load_identity,
    parse_public_document,
)
from agent.keys_stored import IDENTITY_FILE

__all__ = [
    "IDENTITY_FILE",
    "KEY_BYTES",
    "KEY_SUFFIX",
    "MAX_CONSOLES",
    "MAX_GRANT_BYTES",
    "MAX_KEY_FILE_BYTES",
    "DeviceIdentity",
    "PublicDocument",
    "create_console_key",
    "create_identity",
    "keyid",
    "load_console_key",
    "load_identity",
    "load_trusted_consoles",
    "make_grant",
    "open_grant",
    "parse_public_document",
    "read_secret",
]
