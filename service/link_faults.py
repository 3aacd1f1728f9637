"""Why there is no connection: what fails below MQTT and what a broker answers, in a sentence that says what to do."""

from __future__ import annotations

import socket
import ssl

from agent.errors import TemperdError
from service.config import Mqtt

NO_WEBSOCKETS = "the broker does not speak websockets there: check mqtt.port, mqtt.websocket_path and mqtt.transport"
NO_BROKER = "the connection was closed before the broker answered: is this an MQTT port, and one without TLS?"
NO_TLS = "no TLS there: check mqtt.port, or take mqtt.tls and mqtt.ca_file away"
SILENT = "the broker has been silent for too long"
BROKE = "the connection broke"
TOO_LARGE = "the broker sent a packet larger than we allow"
NOT_MQTT = "the broker sent what is no MQTT 5"
NO_QOS_1 = "the broker allows no QoS 1, and nothing would be confirmed: allow it there"
NO_RETAIN = "the broker keeps no retained messages, and consoles would see nothing: allow them there"

_CERTIFICATE = {  # X509_V_ERR_..., openssl/x509_vfy.h
    9: "the broker's certificate is not valid yet: is this board's clock right?",
    10: "the broker's certificate has expired: renew it there, or set this board's clock",
    18: "the broker's certificate is signed by itself, not by an authority that we trust: check mqtt.ca_file",
    19: "the broker's certificate is not signed by an authority that we trust: check mqtt.ca_file",
    20: "the broker's certificate is not signed by an authority that we trust: check mqtt.ca_file",
    21: "the broker's certificate is not signed by an authority that we trust: check mqtt.ca_file",
    23: "the broker's certificate was revoked",
    62: "the broker's certificate is for another host name than mqtt.host",
    64: "the broker's certificate is for another address than mqtt.host",
}
_TLS = {  # parts of OpenSSL's reasons; an ALERT was sent by the broker
    "WRONG_VERSION_NUMBER": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "CERTIFICATE_REQUIRED": "the broker asks for a client certificate: set mqtt.cert_file and mqtt.key_file",
    "HANDSHAKE_FAILURE": "the broker refuses our TLS: perhaps it asks for a client certificate (mqtt.cert_file)",
    "ALERT_UNKNOWN_CA": "the broker does not trust who signed our certificate: check mqtt.cert_file",
    "ALERT_CERTIFICATE_EXPIRED": "our certificate has expired: renew mqtt.cert_file",
    "ALERT_CERTIFICATE_REVOKED": "our certificate was revoked: renew mqtt.cert_file",
    "ALERT_BAD_CERTIFICATE": "the broker refuses our certificate: check mqtt.cert_file",
    "ALERT_PROTOCOL_VERSION": "the broker speaks no TLS 1.2 or newer",
    "UNSUPPORTED_PROTOCOL": "the broker speaks no TLS 1.2 or newer",
    "EOF_OCCURRED": NO_TLS,
}
SHUTTING_DOWN, TAKEN_OVER = 0x8B, 0x8E
_REASONS = {  # MQTT 5, 2.4
    0x01: "the broker does not speak MQTT 5",  # as brokers of before answer: MQTT 3.1.1, 3.2.2.3
    0x84: "the broker does not speak MQTT 5",
    0x85: "the broker does not accept our client id: check device.tenant and device.name",
    0x86: "bad user name or password: check mqtt.username and mqtt.password_file",
    0x87: "not authorised: the broker's access rules do not let this board in",
    0x88: "the broker says that it is unavailable",
    0x89: "the broker says that it is busy",
    0x8A: "the broker has banned this board",
    SHUTTING_DOWN: "the broker is shutting down",
    0x8C: "the broker asks for another way to authenticate than a password or a certificate",
    0x8D: "the broker heard nothing from us for too long",
    TAKEN_OVER: "another client uses our client id: two boards with one name?",
    0x93: "we had too many messages on their way for the broker",
    0x95: "the broker refuses so large a packet",
    0x97: "the broker's quota for us is used up",
    0x98: "the broker's operator ended the connection",
    0x9C: "the broker wants us to use another server: check mqtt.host",
    0x9D: "the broker has moved: check mqtt.host",
    0x9F: "too many connections at once: the broker limits their rate",
}


def of_error(error: BaseException, host: str, port: int) -> str:
    """What kept us from `host`, or ended a connection to it."""
    if isinstance(error, TemperdError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return _of_tls(error)
    plain = {
        socket.gaierror: f"no address for {host}: check mqtt.host and this board's name service",
        ConnectionRefusedError: f"nobody listens at {host} port {port}",
        TimeoutError: f"no answer from {host} port {port}",
    }
    for kind, said in plain.items():
        if isinstance(error, kind):
            return said
    return getattr(error, "strerror", None) or str(error) or BROKE


def of_making(error: BaseException, settings: Mqtt) -> str:
    """What kept us from making a connection at all: who closes it there may not know what we speak."""
    if str(error).startswith("WebSocket"):
        return NO_WEBSOCKETS
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        if settings.encrypted:
            return NO_TLS
        return NO_WEBSOCKETS if settings.transport == "websockets" else NO_BROKER
    return of_error(error, settings.host, settings.port)


def _of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATE.get(error.verify_code, f"the broker's certificate is refused: {error.verify_message}")
    reason = str(error.reason or error)
    known = [said for part, said in _TLS.items() if part in reason.upper().replace(" ", "_")]
    return known[0] if known else f"TLS failed: {reason}"


def of_reason(value: int, name: str) -> str:
    """What a broker means by a reason code; `name` is the standard's, for codes that need no advice."""
    return _REASONS.get(value, f"the broker says: {name}")
