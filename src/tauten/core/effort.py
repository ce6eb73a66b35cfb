"""How long a search goes on: what one more trial must promise for the work that it takes."""

from dataclasses import dataclass

from tauten.core.errors import InputError


@dataclass(frozen=True)
class Effort:
    """When a search ends.

    Attributes:
        name: What users ask for it by.
        worth: Relative gain that a trial must promise if it doubles the work done so far; a share
            of it where it adds less.
        gentle: Levels within the goal that are packed, to be mixed.
        far: The boldest level must lose far more than the goal allows; else any that misses it ends
            the levels.
        probes: What layers lose is corrected by what groups of them lose, each measured.
    """

    name: str
    worth: float
    gentle: int
    far: bool
    probes: bool

    def is_worth(self, gain: float, work: float, done: float) -> bool:
        """Whether a trial is worth its work.

        Args:
            gain: Relative, as expected: 0.01 for 1% fewer bytes.
            work: That it takes.
            done: By the run so far, in the same unit.
        """
        return gain > 0 and gain * done >= self.worth * work


QUICK = Effort("quick", 0.7, 1, far=False, probes=False)
NORMAL = Effort("normal", 0.15, 1, far=False, probes=False)
THOROUGH = Effort("thorough", 0.0, 2, far=True, probes=True)
EFFORTS = {effort.name: effort for effort in (QUICK, NORMAL, THOROUGH)}


def effort_named(name: str) -> Effort:
    """The effort of a name.

    Raises:
        InputError: There is none.
    """
    if name not in EFFORTS:
        raise InputError(f"effort={name!r}: expected one of {', '.join(EFFORTS)}")
    return EFFORTS[name]
