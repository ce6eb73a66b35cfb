"""What a layout costs, predicted from a model's profile and the links between workers."""

from dataclasses import dataclass

from tauten.parallel.pipeline_parallel import balance, even_microbatches
from tauten.parallel.plan import Layout
from tauten.parallel.profile import Profile


@dataclass(frozen=True)
class Link:
    """Time of a message: `latency_s` + bytes / `bytes_per_s`."""

    latency_s: float
    bytes_per_s: float

    def time_s(self, size_bytes: float) -> float:
        """Of a message of so many bytes."""
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Links:
    """How fast workers reach each other.

    Attributes:
        parent: A call and its answer between this process and a worker.
        reduce: An all_reduce of two workers.
        send: From one worker to the next.
    """

    parent: Link
    reduce: Link
    send: Link


@dataclass(frozen=True)
class Division:
    """What tensor parallel deals out.

    Attributes:
        share: Of the computation, in [0, 1].
        units: That it deals out in; uneven ones leave the first workers more.
    """

    share: float
    units: int

    def slowest(self, workers: int) -> float:
        """Share of the computation that the fullest worker does."""
        return 1 - self.share * (1 - fullest(self.units, workers))


def fullest(units: int, workers: int) -> float:
    """Share that the fullest worker gets of so many units."""
    return -(-units // workers) / units


def stage_ends(profile: Profile, pipeline: int) -> tuple[int, ...]:
    """Blocks dealt out to stages by measured cost; what is around them counts with the ends."""
    if pipeline == 1:
        return ()
    costs = list(profile.blocks_share)
    costs[0] += profile.ends_share[0]
    costs[-1] += profile.ends_share[1]
    return balance(costs, pipeline)


def call_s(layout: Layout, profile: Profile, links: Links, division: Division) -> float:
    """Predicted seconds of a call."""
    if layout.workers == 1:
        return profile.call_s(profile.rows, layout.threads)
    rows = -(-profile.rows // layout.data)
    count = even_microbatches(rows, layout.microbatches)
    micro_rows = rows / count
    part = micro_rows / profile.rows  # of the call's bytes
    compute_s = profile.call_s(micro_rows, layout.threads) * division.slowest(layout.tensor)
    if layout.tensor > 1:
        compute_s += sum(links.reduce.time_s(n * part) for n in profile.summed_bytes.values())
    stages_s = [compute_s * share for share in _stage_shares(profile, layout.pipeline)]
    hops_s = (layout.pipeline - 1) * links.send.time_s(profile.state_bytes * part)
    pipeline_s = sum(stages_s) + (count - 1) * max(stages_s) + hops_s
    moved = profile.input_bytes + profile.output_bytes
    return pipeline_s + links.parent.time_s(moved)


def _stage_shares(profile: Profile, pipeline: int) -> list[float]:
    if pipeline == 1:
        return [1.0]
    shares, begin = [], 0
    for end in stage_ends(profile, pipeline):
        shares.append(sum(profile.blocks_share[begin:end]))
        begin = end
    shares[0] += profile.ends_share[0]
    shares[-1] += profile.ends_share[1]
    return shares
