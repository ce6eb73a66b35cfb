"""Text that describes something, as plain values within bounds, and of the kinds they should be.

The one reader of manifests, recipes, journals, plans and configurations. It refuses before it
builds: files by their size, text by the values it would make, trees by their depth. `checked`
then compares values with a type by pydantic, strictly: nothing is converted, so that what was
checked is what was written.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import (
    AfterValidator,
    ConfigDict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    with_config,
)

from tauten.core.errors import CorruptError, InputError

MOST_BYTES = 2**26
MOST_VALUES = 2**22  # in JSON; Python takes about 60 bytes for each
MOST_YAML_VALUES = 2**19  # which takes 10 microseconds for each
MOST_DEPTH = 64
MOST_CHARACTERS = 2**22  # of a string
MOST_ELEMENTS = 2**48  # of a tensor
ANEW = "make it anew"
_SHOWN = 60  # characters of a value in a message
_WORDS = {"an object": "a mapping", "array": "list", "a valid boolean": "true or false"}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}

# Decorate types: one without other fields, and one whose other fields are kept as they are.
exact = with_config(ConfigDict(extra="forbid"))
at_least = with_config(ConfigDict(extra="allow"))


def _fits_memory(sizes: list[int]) -> list[int]:
    if math.prod(sizes) > MOST_ELEMENTS:
        raise ValueError(f"expected at most {MOST_ELEMENTS} elements in all")
    return sizes


Count = Annotated[int, Ge(0), Le(2**48)]
Size = Annotated[int, Ge(1), Le(2**40)]
Shape = Annotated[list[Size], MinLen(1), MaxLen(8), AfterValidator(_fits_memory)]
Sizes = Annotated[list[Count], MaxLen(8), AfterValidator(_fits_memory)]  # of any tensor
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def read_json(file: Path, kind: Any = Any, remedy: str = ANEW, wide: bool = False) -> Any:
    """What a JSON file says.

    Args:
        file: To read.
        kind: Type of what it must say.
        remedy: What to do about a damaged file.
        wide: As for `parse_json`.
    Raises:
        CorruptError: It isn't there, too large, no JSON, or of another kind.
    """
    return checked(kind, parse_json(read_text(file, remedy), str(file), remedy, wide), file, remedy)


def read_text(file: Path, remedy: str = ANEW) -> str:
    """What a file of text says, in UTF-8.

    Raises:
        CorruptError: It isn't there, is empty, too large or no text.
    """
    try:
        if not file.is_file():  # also a folder, a pipe or a link to nothing
            raise CorruptError(f"{file}: no file there; {remedy}")
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1).decode()
    except OSError as error:
        raise CorruptError(f"{file}: can't be read ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError as error:
        raise CorruptError(f"{file}: damaged ({error}); {remedy}") from None
    if not text:
        raise CorruptError(f"{file} is empty; {remedy}")
    return text


def parse_json(text: bytes | str, where: str, remedy: str = ANEW, wide: bool = False) -> Any:
    """Plain values from JSON.

    Args:
        text: In UTF-8.
        where: Names the text in messages.
        remedy: What to do about damage.
        wide: Whether it may hold NaN, infinity and integers of more than 64 bits.
    Raises:
        CorruptError: It isn't JSON within bounds, or a key stands twice.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_size(text, MOST_VALUES, ",[{")
        values = json.loads(text, object_pairs_hook=_unique)
        _check_values(values, wide)
    except RecursionError:
        raise CorruptError(f"{where}: damaged (nested too deeply); {remedy}") from None
    except ValueError as error:  # of JSON and of UTF-8 alike
        raise CorruptError(f"{where}: damaged ({error}); {remedy}") from None
    return values


def parse_yaml(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """Plain values from YAML, and its nodes, which know their lines.

    Anchors, aliases and tags are refused; dates are text.

    Raises:
        InputError: It isn't YAML within bounds.
    """
    try:
        _check_size(text, MOST_YAML_VALUES, ",[{:\n")
        _check_events(yaml.parse(text, _YamlLoader))
        loader = _YamlLoader(text)
        try:
            node = loader.get_single_node()
            values = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
        _check_values(values, wide=False)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        place = "" if mark is None else f"line {mark.line + 1}: "
        said = " ".join(str(problem).split())
        raise InputError(f"{where}: {place}not YAML: {said}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return values, node


def checked(
    kind: Any,
    value: Any,
    where: str | Path,
    remedy: str = ANEW,
    error_class: type[InputError] = CorruptError,
) -> Any:
    """A value of a type, its dataclasses and tuples made of plain data.

    Args:
        kind: The type.
        value: Plain data, as JSON has it.
        where: Names the file in messages.
        remedy: What to do about damage.
        error_class: What is raised; `InputError` of what a user wrote, where there's no damage.
    Raises:
        InputError: It is of another type; the message names the first field that is.
    """
    if kind is Any:
        return value
    try:
        # Through JSON: strict rules for Python values ask for tuples and instances.
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = _told(error)
    except TypeError as error:  # of json
        problem = str(error)
    if error_class is CorruptError:
        problem = f"damaged ({problem}); {remedy}"
    raise error_class(f"{where}: {problem}")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _told(error: ValidationError) -> str:
    """Field, value and what was expected, of the first that is wrong."""
    first = error.errors(include_url=False)[0]
    path, value = ".".join(map(str, first["loc"])), repr(first["input"])
    match first["type"]:
        case "missing":
            return f"{path} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{path} is unknown"
        case "value_error":  # of a check in Python
            said = str(first["ctx"]["error"])
            if not path:
                return said
        case _:
            said = first["msg"].replace("Input should be", "expected")
            for word, plain in _WORDS.items():
                said = said.replace(word, plain)
    value = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return f"{path}={value}: {said}" if path else f"{value}: {said}"


def _check_size(text: str, most_values: int, signs: str) -> None:
    """Raise ValueError where a text would take far more memory or time than it should."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    if sum(map(text.count, signs)) > most_values:
        raise ValueError(f"more than {most_values} values")


def _check_values(root: Any, wide: bool) -> None:
    """Raise ValueError unless all is plain and within bounds."""
    level, depth = [root], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper += value
                deeper += value.values()
                if not all(isinstance(key, str) for key in value):
                    raise ValueError("a key is no text")
            elif isinstance(value, list):
                deeper += value
            else:
                _check_leaf(value, wide)
        level, depth = deeper, depth + 1


def _check_leaf(value: Any, wide: bool) -> None:
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            raise ValueError(f"a text of more than {MOST_CHARACTERS} characters")
        if not value.isascii():
            value.encode()  # half of a pair of surrogates is no character
    elif isinstance(value, float):
        if not wide and not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int) and not wide and not -(2**63) <= value < 2**63:
        raise ValueError("an integer of more than 64 bits")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{repeated!r} stands twice")
    return made


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Knows no tags but those of JSON's values, and refuses a key that stands twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in rules if tag in _PLAIN_TAGS]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """As in PyYAML."""
        made = super().construct_mapping(node, deep)
        if len(made) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "a key stands twice", node.start_mark
            )
        return made


def _check_events(events: Iterator[Any]) -> None:
    """Refuse what would make more of a text than it holds, or run code."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        special = getattr(event, "anchor", None) or getattr(event, "tag", None)
        if special or depth > MOST_DEPTH:
            problem = (
                f"nested more than {MOST_DEPTH} deep"
                if depth > MOST_DEPTH
                else (f"{special!r}: write values out, without anchors, aliases and tags")
            )
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
