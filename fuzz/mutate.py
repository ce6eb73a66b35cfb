"""Damage to a file: its bytes, lines, numbers, lengths and structure; a seed always does the same.

`mutate` is given what a file is made of, so that half of the damage still parses and reaches what
reads the values.
"""

import json
import re
from collections.abc import Callable
from random import Random

import yaml

from fuzz.structure import ODD_TEXTS, damaged

Damage = Callable[[bytes, Random], bytes]
EDGES = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1)
NUMBERS = (
    *("0", "-1", "1", "2", "0.5", "-0.0", "1e308", "1e999", "NaN", "-Infinity", ".inf", "true"),
    *("null", "2147483648", "9223372036854775807", "9223372036854775808", "9" * 5000, "0x10"),
)
DEEP = (b"[" * 100_000, b'{"a":' * 50_000, b"- " * 5_000)
# Each line holds the one before nine times: 9^11 texts, for whoever writes them out.
_BOMB = (f"k{i}: &k{i} [{','.join([f'*k{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12))
YAML_ODD = (
    "".join(_BOMB).encode(),
    b'!!python/object/apply:os.system ["true"]\n',
    b"<<: {steps: []}\n",
    b"--- \n",
    b"\t",
)


def mutate(content: bytes, form: str, random: Random) -> tuple[bytes, str]:
    """Damage a file.

    Args:
        content: Of the file, at least a byte.
        form: `bytes`, `text`, or one of `FORMS`.
        random: Decides everything.
    Returns:
        Other content, and the names of what was done.
    """
    own = FORMS.get(form, {})
    while True:
        result, said = content, []
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            kinds = own if own and random.random() < 0.6 else BYTES
            name = random.choice(list(kinds))
            result = kinds[name](result, random)
            said.append(name)
        if result != content:
            return result, " ".join(said)


def _place(content: bytes, random: Random) -> int:
    """An index, half of them in the first part of the file, where headers are."""
    return random.randrange((len(content) >> random.choice((0, 0, 0, 2, 4, 6))) + 1)


def _range(content: bytes, random: Random) -> tuple[int, int]:
    start = _place(content, random)
    return start, start + random.choice((1, 1, 2, 4, 8, 16, 64, 1024))


def flip(content: bytes, random: Random) -> bytes:
    """One bit."""
    at = min(_place(content, random), len(content) - 1)
    if at < 0:
        return b"\0"
    return content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :]


def overwrite(content: bytes, random: Random) -> bytes:
    """One byte by one at an edge."""
    at = _place(content, random)
    return (
        content[:at] + bytes([random.choice((0, 1, 10, 34, 92, 127, 128, 255))]) + content[at + 1 :]
    )


def truncate(content: bytes, random: Random) -> bytes:
    """The end is missing."""
    return content[: _place(content, random)]


def extend(content: bytes, random: Random) -> bytes:
    """Something behind the end."""
    return content + random.choice((b"\0" * 8, b"\n", b"{}", random.randbytes(16), content[:4096]))


def insert(content: bytes, random: Random) -> bytes:
    """Bytes in between."""
    at = _place(content, random)
    return content[:at] + random.randbytes(random.choice((1, 4, 8, 33))) + content[at:]


def delete(content: bytes, random: Random) -> bytes:
    """A range."""
    start, stop = _range(content, random)
    return content[:start] + content[stop:]


def repeat(content: bytes, random: Random) -> bytes:
    """A range a few times."""
    start, stop = _range(content, random)
    return content[:start] + content[start:stop] * random.choice((2, 3, 200)) + content[stop:]


def splice(content: bytes, random: Random) -> bytes:
    """A range over another."""
    start, stop = _range(content, random)
    at = _place(content, random)
    piece = content[start:stop]
    return content[:at] + piece + content[at + len(piece) :]


def clear(content: bytes, random: Random) -> bytes:
    """A range of zeros or ones, as of a block that was never written."""
    start, stop = _range(content, random)
    stop = min(stop, len(content))
    return content[:start] + random.choice((b"\0", b"\xff")) * (stop - start) + content[stop:]


def length(content: bytes, random: Random) -> bytes:
    """A number of 2, 4 or 8 bytes at an edge, as lengths and offsets are."""
    width = random.choice((2, 4, 8))
    at = _place(content, random)
    at -= at % random.choice((1, width))
    value = random.choice(EDGES) % 2 ** (8 * width)
    return content[:at] + value.to_bytes(width, "little") + content[at + width :]


def number(content: bytes, random: Random) -> bytes:
    """A number in a text, by another."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", content[:100_000]))
    if not found:
        return flip(content, random)
    start, stop = random.choice(found).span()
    return content[:start] + random.choice(NUMBERS).encode() + content[stop:]


def word(content: bytes, random: Random) -> bytes:
    """A word in a text, by another of it or by an odd one."""
    found = list(re.finditer(rb"[A-Za-z_.]{2,}", content[:100_000]))
    if not found:
        return insert(content, random)
    start, stop = random.choice(found).span()
    odd = random.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")
    other = random.choice((odd, random.choice(found).group(), b"true", b"null"))
    return content[:start] + other + content[stop:]


def lines(content: bytes, random: Random) -> bytes:
    """A line is gone, doubled, or in another place."""
    parts = content.splitlines(keepends=True) or [b"\n"]
    at = random.randrange(len(parts))
    line = parts.pop(at)
    for _ in range(random.choice((0, 1, 2))):
        parts.insert(random.randrange(len(parts) + 1), line)
    return b"".join(parts)


def odd_text(content: bytes, random: Random) -> bytes:
    """What no text should hold, in between."""
    at = _place(content, random)
    odd = random.choice(
        (b"\0", b"\x1b[2J", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\xe2\x80\xa8")
    )
    return content[:at] + odd + content[at:]


def deep(content: bytes, random: Random) -> bytes:
    """Deeper than any reader should follow; one in ten, as it is long."""
    if random.random() > 0.1:
        return odd_text(content, random)
    at = random.choice((0, _place(content, random)))
    return content[:at] + random.choice(DEEP) + content[at:]


def _json(content: bytes, random: Random) -> bytes:
    """A value of a JSON file."""
    try:
        return json.dumps(damaged(json.loads(content), random)).encode()
    except (ValueError, RecursionError):  # what was done before has made it something else
        return flip(content, random)


def _json_line(content: bytes, random: Random) -> bytes:
    """A value of a line of JSON, whatever stands before that."""
    parts = content.splitlines(keepends=True) or [b"{}"]
    at = random.randrange(len(parts))
    before, brace, text = parts[at].partition(b"{")
    parts[at] = before + _json(brace + text, random) + b"\n"
    return b"".join(parts)


def _yaml(content: bytes, random: Random) -> bytes:
    """A value of a YAML file."""
    try:
        value = damaged(yaml.load(content, yaml.SafeLoader), random)
        return yaml.dump(value, Dumper=yaml.SafeDumper, sort_keys=False).encode()
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError):
        return flip(content, random)


def _yaml_odd(content: bytes, random: Random) -> bytes:
    """Aliases, tags and documents before or behind it."""
    odd = random.choice(YAML_ODD)
    return random.choice((odd + content, content + b"\n" + odd))


def _header(content: bytes, random: Random) -> bytes:
    """A value of the header of safetensors, whose length is mostly right."""
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size], random)
    if random.random() < 0.2:  # as the library pads it
        header += b" " * (-len(header) % 8)
    written = len(header) if random.random() < 0.9 else size
    return written.to_bytes(8, "little") + header + content[8 + size :]


BYTES: dict[str, Damage] = {
    made.__name__: made
    for made in (flip, overwrite, truncate, extend, insert, delete, repeat, splice, clear, length)
}
TEXT: dict[str, Damage] = {made.__name__: made for made in (number, word, lines, odd_text, deep)}
FORMS: dict[str, dict[str, Damage]] = {
    "text": TEXT,
    "json": {**TEXT, "json": _json, "json twice": lambda c, r: _json(_json(c, r), r)},
    "lines": {**TEXT, "json line": _json_line},
    "yaml": {**TEXT, "yaml": _yaml, "yaml odd": _yaml_odd},
    "safetensors": {"header": _header, "length": length},
}
