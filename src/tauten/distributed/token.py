"""A secret that all machines of a cluster share; who doesn't know it gets no work and no answer."""

import hashlib
import hmac
import os
import secrets
from multiprocessing.connection import Connection
from pathlib import Path

from tauten.core.errors import InputError, TautenError

ENVIRONMENT = "TAUTEN_TOKEN_PATH"
_DEFAULT = Path("~/.config/tauten/token")
_NONCE_BYTES = 32
_PATIENCE_S = 10.0  # for each step of the other side
_FEWEST_BYTES = 16


class RefusedError(TautenError):
    """The other side doesn't know the token."""


def read_token(file: str | os.PathLike[str] | None = None) -> bytes:
    """The cluster's token.

    Args:
        file: That holds it; by default `TAUTEN_TOKEN_PATH`, else one in the user's configuration,
            which is made where there is none, for this user alone.
    Raises:
        InputError: The file can't be read, others may read it, or it is too short.
    """
    given = file or os.environ.get(ENVIRONMENT)
    path = Path(given or _DEFAULT).expanduser()
    if given is None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(_NONCE_BYTES) + "\n")
    try:
        token, mode = path.read_bytes().strip(), path.stat().st_mode
    except OSError as error:
        raise InputError(f"token file {path}: {error.strerror}") from None
    if mode & 0o077:
        raise InputError(f"token file {path}: others may read it; run chmod 600 {path}")
    if len(token) < _FEWEST_BYTES:
        raise InputError(f"token file {path}: shorter than {_FEWEST_BYTES} characters")
    return token


def prove(connection: Connection, token: bytes, is_driver: bool) -> bytes:
    """Show each other that both know the token, without saying it: HMAC-SHA256 of fresh nonces.

    Returns:
        A key that only the two know, of this connection alone.
    Raises:
        RefusedError: The other side doesn't know it, or doesn't speak this protocol.
    """
    ours, theirs = (b"driver", b"worker") if is_driver else (b"worker", b"driver")
    try:
        sent = secrets.token_bytes(_NONCE_BYTES)
        connection.send_bytes(sent)
        received = _receive(connection)
        connection.send_bytes(_proof(token, ours, sent + received))
        shown = _receive(connection)
    except (OSError, EOFError):
        raise RefusedError("the other side closed the connection: is the token the same?") from None
    if not hmac.compare_digest(shown, _proof(token, theirs, received + sent)):
        raise RefusedError("the other side has another token")
    return _proof(token, b"messages", sent + received if is_driver else received + sent)


def _proof(token: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.new(token, role + nonces, hashlib.sha256).digest()


def _receive(connection: Connection) -> bytes:
    if not connection.poll(_PATIENCE_S):
        raise EOFError
    return connection.recv_bytes(_NONCE_BYTES)
