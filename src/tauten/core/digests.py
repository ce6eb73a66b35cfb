"""Digests of files, and of JSON that holds its own."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tauten.core.description import read_json
from tauten.core.errors import CorruptError, TautenError
from tauten.core.files import make_folder, sha256_file, write_json

SEAL = "sha256"  # of all else in a JSON object
_KEPT_BYTES = 2**24  # smaller files are read again in the time that a look at the cache takes
_MOST_KEPT = 1000
_READERS = 4
_SETTLED_NS = 2 * 10**9  # a file may change once more within a tick of its file system's clock


def digest_of(value: Any) -> str:
    """SHA-256 of what JSON holds of a value, however it is laid out there."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of all that is in it."""
    return {**value, SEAL: digest_of(value)}


def unsealed(value: Any, file: Path, remedy: str) -> dict[str, Any]:
    """A JSON object without its digest.

    Args:
        value: What JSON says; perhaps without a digest, as earlier versions wrote it.
        file: That it stands in, for messages.
        remedy: What to do where that was changed.
    Raises:
        CorruptError: It is no object, or not what was sealed.
    """
    if not isinstance(value, dict):
        raise CorruptError(f"{file}: damaged (no JSON object); {remedy}")
    rest = {name: item for name, item in value.items() if name != SEAL}
    try:
        is_whole = SEAL not in value or digest_of(rest) == value[SEAL]
    except ValueError:  # NaN, which was never written
        is_whole = False
    if not is_whole:
        raise CorruptError(f"{file}: changed since it was written; {remedy}")
    return rest


def file_digests(files: Sequence[Path]) -> list[str]:
    """SHA-256 of whole files; those of large ones are kept in the user's cache.

    There they hold as long as path, size, times and inode are the same, so that a run that goes on
    doesn't read all of a model again to know it.
    """
    kept = _kept()
    known = {tuple(row[:-1]): str(row[-1]) for row in kept}
    before = [_identity(file) for file in files]
    missing = [file for file, key in zip(files, before, strict=True) if key not in known]
    with ThreadPoolExecutor(_READERS) as pool:
        made = dict(zip(missing, pool.map(sha256_file, missing), strict=True))
    settled = time.time_ns() - _SETTLED_NS
    new = [
        [*key, made[file]]
        for file, key in zip(files, before, strict=True)
        if file in made and _is_kept(key, settled) and _identity(file) == key
    ]
    if new:
        _keep([*kept, *new])
    return [made.get(file) or known[key] for file, key in zip(files, before, strict=True)]


def _identity(file: Path) -> tuple[str | int, ...]:
    """What changes with a file's contents; the second time is the system's own."""
    facts = file.stat()
    times = facts.st_mtime_ns, facts.st_ctime_ns
    return (os.path.realpath(file), facts.st_size, *times, facts.st_ino, facts.st_dev)


def _is_kept(identity: tuple[str | int, ...], settled: int) -> bool:
    size, modified, changed = (int(fact) for fact in identity[1:4])
    return size >= _KEPT_BYTES and max(modified, changed) < settled


def _cache() -> Path | None:
    """The file of digests; None where there is no place for one."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(named if os.path.isabs(named) else os.path.expanduser("~/.cache"))
    return folder / "tauten" / "digests.json" if folder.is_absolute() else None


def _kept() -> list[list[Any]]:
    """Rows of an identity and a digest; none of a cache that isn't whole."""
    cache = _cache()
    if cache is None:
        return []
    try:
        raw = read_json(cache, dict[str, Any])
        rows: list[list[Any]] = unsealed(raw, cache, "")["rows"] if SEAL in raw else []
    except (TautenError, KeyError):
        return []
    return rows


def _keep(rows: list[list[Any]]) -> None:
    cache = _cache()
    if cache is not None:
        # It only saves time: a home that can't be written, or is being written, is none the worse.
        with contextlib.suppress(TautenError):
            make_folder(cache.parent)
            write_json(cache, sealed({"rows": rows[-_MOST_KEPT:]}))
