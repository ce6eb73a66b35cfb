"""Damage to data that was parsed: values at edges, of other kinds, gone, renamed, twice."""

import copy
from random import Random
from typing import Any

ODD_TEXTS = (
    *("", " ", "x", "0", "-1", "none", "../x", "/etc/passwd", "a/b", ".", "a" * 5000, "\0"),
    *("\x1b[2J", "\ud800", "é", "{}", "%s", "*", "os:system", "float32", "int8", "torch"),
)
EDGES: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        3,
        5,
        7,
        1000,
        2**31 - 1,
        2**31,
        2**40,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
        10**30,
    ),
    *(0.5, -0.0, 1e-300, 1e308, float("inf"), float("nan"), True, False, None),
    *([], {}, [[]], [None], [0] * 5000, {"": 0}, [1, 2], [1.5], ["x"], {"layer": "x"}),
)


def damaged(value: Any, random: Random) -> Any:
    """A copy of JSON data in which one thing is otherwise."""
    whole = [copy.deepcopy(value)]
    places = _places(whole)
    holder, key = random.choice(places)
    old = holder[key]
    match random.randrange(10):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(random.choice(EDGES))
        case 3:
            holder[key] = random.choice(ODD_TEXTS)
        case 4:
            holder[key] = _near(old, random)
        case 5:
            del holder[key]
        case 6:
            other, place = random.choice(places)
            holder[key] = copy.deepcopy(other[place])
        case 7:
            _grow(holder, key, random)
        case 8:
            holder[key] = random.choice(([old], {"a": old}, [old, old], _nested(old)))
        case 9:
            _rename(holder, key, random)
    return whole[0] if whole else None


def _places(whole: list[Any]) -> list[tuple[Any, Any]]:
    """Every value of a tree, as its holder and its key or index; what YAML names twice, once."""
    found: list[tuple[Any, Any]] = []
    met: set[int] = set()
    ahead: list[Any] = [whole]
    while ahead:
        holder = ahead.pop()
        met.add(id(holder))
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            found.append((holder, key))
            if isinstance(value, dict | list) and id(value) not in met:
                ahead.append(value)
    return found


def _near(old: Any, random: Random) -> Any:
    """Another value of the same kind."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return random.choice((old + 1, old - 1, -old, 2 * old, old * 10**6, old + 0.5, str(old)))
    if isinstance(old, str):
        at = random.randrange(len(old) + 1)
        return random.choice((old[:at], old + old, old[:at] + "~" + old[at:], old.upper(), [old]))
    if isinstance(old, list):
        return random.choice(
            (old[::-1], old + old, old[:-1], old[1:], tuple(old), dict.fromkeys("ab"))
        )
    return {} if old else 0


def _grow(holder: Any, key: Any, random: Random) -> None:
    """Something more beside it; a list that is long."""
    value = copy.deepcopy(holder[key])
    if isinstance(holder, dict):
        holder[f"{key}{random.choice(('2', '_', '.x', ' '))}"] = value
    else:
        holder.extend(
            [value] * random.choice((1, 3, 1 if isinstance(value, dict | list) else 1000))
        )


def _rename(holder: Any, key: Any, random: Random) -> None:
    if isinstance(holder, dict):
        holder[random.choice((*ODD_TEXTS, str(key)[:-1], f"{key}x"))] = holder.pop(key)
    else:
        holder.reverse()


def _nested(value: Any) -> Any:
    for _ in range(200):
        value = [value]
    return value
