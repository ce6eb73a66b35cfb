"""Which channels belong together, on networks whose answer is known."""

import pytest
import torch
from tiny_models import Residual, tiny_bert, tiny_cnn, tiny_mlp
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.models.channel_graph import channel_graph
from tauten.models.channel_groups import ChannelGroup, Member, cut


class Branches(nn.Module):
    """Two convolutions side by side, joined, flattened by a view, and read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(10)
        self.end = nn.Linear(10 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x).relu()], 1)
        x = torch.max_pool2d(self.norm(x), 1)
        return self.end(x.view(x.size(0), -1))


class Separable(nn.Module):
    """A depthwise convolution, gated by what its mean says."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.end = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depth(self.wide(x)))
        gate = self.gate(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.end(x * gate.sigmoid())


class Branching(nn.Module):
    """Control flow on a tensor, which no tracing sees."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the error names
            return self.inner(x)
        return x


def names(group: ChannelGroup) -> set[str]:
    return {member.module for member in group.members}


def test_a_skip_joins_all_that_it_adds() -> None:
    groups = channel_graph(tiny_cnn()).groups
    inner = [{f"1.{i}.conv1", f"1.{i}.norm", f"1.{i}.conv2"} for i in range(3)]
    skip = {"0", "2", *(f"1.{i}.conv{k}" for i in range(3) for k in (1, 2))}
    assert sorted(map(names, groups), key=len)[-1] == skip
    assert all(group in list(map(names, groups)) for group in inner)
    assert names(groups[-1]) == {"2", "5"}  # behind pooling and flatten
    parts = [4 if "2" in names(group) else 1 for group in groups]  # of the grouped convolution
    assert [group.parts for group in groups] == parts


def test_joined_channels_keep_their_places() -> None:
    left, right = channel_graph(Branches()).groups
    assert left.members == (
        Member("left", "out"),
        Member("norm", "both", 0, 1),
        Member("end", "in", 0, 16),
    )
    assert (right.size, right.members[1:]) == (
        6,
        (Member("norm", "both", 4, 1), Member("end", "in", 64, 16)),
    )


def test_depthwise_and_gate_are_one_group() -> None:
    groups = channel_graph(Separable()).groups
    assert list(map(names, groups)) == [
        {"wide", "depth", "squeeze", "gate", "end"},
        {"squeeze", "gate"},
    ]


def test_inputs_and_outputs_keep_their_size() -> None:
    (group,) = channel_graph(tiny_mlp()).groups
    assert group.members == (Member("0", "out"), Member("1", "in"))


class Twice(nn.Module):
    """A layer called twice, two tied ones, and channels that an unknown operation sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(self.first(x)))
        return self.last(self.tied(x.cumsum(-1)))


def test_what_is_used_in_other_ways_stays() -> None:
    assert channel_graph(Twice()).groups == ()


def test_batch_norms_behind_a_layer_are_known() -> None:
    graph = channel_graph(tiny_cnn())
    assert graph.norms == {f"1.{i}.conv1": f"1.{i}.norm" for i in range(3)}


def test_parts_of_what_cannot_be_traced() -> None:
    model = nn.Sequential(Branching(Residual(8)), nn.Conv2d(8, 4, 1))
    (group,) = channel_graph(model).groups
    assert names(group) == {f"0.inner.{name}" for name in ("conv1", "norm", "conv2")}


def test_says_where_tracing_fails() -> None:
    match = r"can't be traced.*0, .*test_channel_graph.py:\d+ \(TraceError"
    with pytest.raises(InputError, match=match):
        channel_graph(nn.Sequential(Branching(nn.Identity())))


def test_transformers_own_classes_are_traced_by_their_parts_or_refused() -> None:
    with pytest.raises(InputError, match="prune_width and prune_heads"):
        channel_graph(tiny_bert())


@pytest.mark.parametrize("build", [tiny_cnn, Branches, Separable, tiny_mlp])
def test_cut_models_run_and_say_their_sizes(build) -> None:
    torch.manual_seed(0)
    model = build().eval()
    x = {"tiny_cnn": (2, 1, 12, 12), "tiny_mlp": (2, 10)}.get(build.__name__, (2, 3, 6, 6))
    before = model(torch.randn(x))
    choices = []
    for group in channel_graph(model).groups:
        kept = torch.ones(group.parts, group.size // group.parts, dtype=torch.bool)
        kept[:, ::2] = False
        choices.append((group, kept.flatten()))
    originals = {name: (t, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    cut(model, choices)
    assert model(torch.randn(x)).shape == before.shape
    assert all(torch.equal(tensor, copy) for tensor, copy in originals.values())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            inner = module.in_channels // module.groups
            assert module.weight.shape[:2] == (module.out_channels, inner)
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.BatchNorm2d):
            assert len(module.running_mean) == len(module.weight) == module.num_features
