"""Checks of the knobs that techniques have in common; each names the technique and the knob."""

from tauten.core.errors import InputError


def check_bits(technique: str, bits: int) -> None:
    """Raise InputError unless 1 to 8."""
    if type(bits) is not int or bits not in range(1, 9):
        raise InputError(f"{technique}: bits={bits!r}: expected an integer from 1 to 8")


def check_group_size(technique: str, group_size: int) -> None:
    """Raise InputError unless 0 (a scale a row) or a number of columns."""
    if type(group_size) is not int or group_size < 0:
        raise InputError(
            f"{technique}: group_size={group_size!r}: expected 0 or a positive integer"
        )


def check_damping(technique: str, damping: float) -> None:
    """Raise InputError unless it is relative to a mean diagonal: above 0, at most 1."""
    if not 0 < damping <= 1:
        raise InputError(f"{technique}: damping={damping!r}: expected more than 0, at most 1")


def check_activation(technique: str, activation: str) -> None:
    """Raise InputError unless activations are kept or rounded as they come."""
    if activation not in ("float", "int8"):
        raise InputError(f"{technique}: activation={activation!r}: expected float or int8")


def check_rounds(technique: str, rounds: int) -> None:
    """Refuse anything but 0 and positive integers."""
    if not isinstance(rounds, int) or rounds < 0:
        raise InputError(f"{technique}: rounds={rounds!r}: expected 0 or a positive integer")


def check_sparsity(technique: str, sparsity: float, pattern: str) -> None:
    """Raise InputError unless a part of the weights is zeroed, in a known pattern."""
    if pattern not in ("unstructured", "2:4"):
        raise InputError(f"{technique}: pattern={pattern!r}: expected unstructured or 2:4")
    if not 0 < sparsity < 1:
        raise InputError(f"{technique}: sparsity={sparsity!r}: expected above 0, below 1")
    if pattern == "2:4" and sparsity != 0.5:
        raise InputError(f"{technique}: sparsity={sparsity}: pattern 2:4 is 0.5, leave it at that")


def check_allocation(technique: str, allocation: str, pattern: str) -> None:
    """Raise InputError unless zeroes are shared out in a way that the pattern leaves open."""
    if allocation not in ("uniform", "sensitivity"):
        expected = "expected uniform or sensitivity"
        raise InputError(f"{technique}: allocation={allocation!r}: {expected}")
    if allocation == "sensitivity" and pattern == "2:4":
        raise InputError(
            f"{technique}: pattern 2:4 zeroes half of every layer, so allocation can't be "
            "sensitivity; leave it at uniform, or take pattern=unstructured"
        )


def check_fraction(technique: str, fraction: float) -> None:
    """Refuse what leaves nothing to remove or nothing to keep."""
    if not 0 < fraction < 1:
        raise InputError(f"{technique}: fraction={fraction!r}: expected between 0 and 1")


def check_multiple(technique: str, multiple: int) -> None:
    """Refuse anything but positive integers."""
    if not isinstance(multiple, int) or multiple < 1:
        raise InputError(f"{technique}: multiple={multiple!r}: expected a positive integer")
