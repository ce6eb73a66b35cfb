"""Recipes survive a round trip, and a damaged one says which step and what is wrong."""

from dataclasses import dataclass, field, replace

import pytest

from tauten.compression import ShareKMeans
from tauten.core.errors import InputError
from tauten.core.recipe import DataSplit, Recipe, Step
from tauten.core.technique import Technique
from tauten.quantization import RTN, Int8

KNOWN: dict[str, type[Technique]] = {t.name: t for t in (RTN, Int8, ShareKMeans)}
RECIPES = [
    Recipe(()),
    Recipe.of(RTN()),
    Recipe.of(RTN(3, 0, "none", "minmax"), Int8(64, "mse")),
    Recipe((Step(RTN(2), "model.layers.*, lm_head"), Step(ShareKMeans(1e-5), "*.mlp.?_proj"))),
    Recipe((Step(RTN(4, 64), "a.*", (("a.b", RTN(2, 64)), ("a.c", RTN(4, 32)))),)),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_yaml_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml(), KNOWN) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "steps:\n- technique: rtn\n- technique: int8\n\n- technique: rtm\n",
            "line 5, step 3: unkn",
        ),
        ("# mine\nsteps:\n  - technique: rtn\n    bits: 9\n", "line 3, step 1: rtn: bits=9"),
        ("steps:\n- {technique: int8}\n- {technique: rtn, bit: 4}\n", "line 3, step 2: rtn has no"),
        ("steps: [{technique: rtn},\n  3]\n", "line 2, step 2: 3: expected a mapping"),
        ("steps:\n- technique: rtn\n  where: [\n", "line 4"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_yaml(text, KNOWN)


def test_flags_survive() -> None:
    split = DataSplit(seed=3, max_tokens=800)
    recipe = replace(Recipe.of(RTN()), apart=True, entropy_coding=True, split=split)
    assert Recipe.from_yaml(recipe.to_yaml(), KNOWN) == recipe
    with pytest.raises(InputError, match="apart='yes': expected true or false"):
        Recipe.from_yaml("apart: 'yes'\nsteps: []", KNOWN)
    for wrong in ("3", "{seed: 3}", "{seed: 3, max_tokens: x}", "{seed: 1, max_tokens: 2, a: 3}"):
        with pytest.raises(InputError, match=r"split"):
            Recipe.from_yaml(f"split: {wrong}\nsteps: []", KNOWN)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_dict_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict(), KNOWN) == recipe


def test_knobs_left_out_take_their_defaults() -> None:
    read = Recipe.from_yaml("steps:\n- technique: rtn\n  bits: 3\n", KNOWN)
    assert read == Recipe((Step(RTN(bits=3), "*"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "not YAML"),
        ("", "None: expected a mapping"),
        ("- technique: rtn", "expected a mapping"),
        ("steps: rtn", "steps='rtn': expected a valid list"),
        ("tauten: 99\nsteps: []", "version 99"),
        ("steps: [rtn]", "step 1: 'rtn': expected a mapping"),
        ("steps: [{bits: 4}]", "step 1: technique is missing"),
        ("steps: [{technique: int8}, {technique: rtm}]", "step 2: unknown technique 'rtm'.*rtn"),
        ("steps: [{technique: [rtn]}]", "step 1: technique=.*: expected a valid string"),
        ("steps: [{technique: rtn, bit: 4}]", "step 1: rtn has no knob 'bit'.*bits"),
        ("steps: [{technique: rtn, bits: 9}]", "bits=9"),
        ("steps: [{technique: rtn, bits: 4.0}]", "bits=4.0"),
        ("steps: [{technique: rtn, bits: '4'}]", "bits='4'"),
        ("steps: [{technique: rtn, group_size: 1.5}]", "group_size=1.5"),
        ("steps: [{technique: rtn, zero: [none]}]", "zero="),
        ("steps: [{technique: rtn, where: 3}]", "step 1: where=3"),
        ("steps: [{technique: rtn, layers: [a]}]", "step 1: layers=.*: expected a mapping"),
        ("steps: [{technique: rtn, layers: {a: 3}}]", "step 1: layers.a=3: expected a mapping"),
        ("steps: [{technique: rtn, layers: {a: {bit: 3}}}]", "step 1: rtn has no knob 'bit'"),
        # YAML takes 1e-2, which has no point, for text.
        (
            "steps: [{technique: share_kmeans, max_error: 1e-2}]",
            "step 1: max_error='1e-2': expected",
        ),
        ("steps: [{technique: share_kmeans, bits: 2.0}]", "bits=2.0"),
    ],
)
def test_a_damaged_recipe_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_yaml(text, KNOWN)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("lm_head", 1),
        ("model.layers.0.mlp.up_proj", 2),
        ("model.layers.10.self_attn.q_proj", 2),
        ("MODEL.layers.0.x", None),
        ("embed", None),
    ],
)
def test_the_first_step_that_matches_a_layer_is_for_it(name: str, index: int | None) -> None:
    recipe = Recipe((Step(RTN(8), "lm_head"), Step(RTN(4), "nothing, model.*"), Step(RTN(2), "m*")))
    found = recipe.step_for(name)
    assert found == (None if index is None else (index, recipe.steps[index - 1]))


def test_text_shows_bits_and_what_differs_from_the_defaults() -> None:
    assert str(Recipe(())) == "original"
    assert str(Recipe.of(Int8())) == "int8"
    recipe = Recipe((Step(RTN(), "a.*"), Step(RTN(bits=3, zero="none"))))
    assert str(recipe) == "rtn(bits=4) on a.*, rtn(bits=3, zero=none)"


def test_a_list_of_trials_says_a_mix_in_one_line() -> None:
    """Steps that differ in bits and place alone are one; anything else stays as it is."""
    mix = Recipe((Step(RTN(4), "a,b"), Step(RTN(3), "c"), Step(Int8(), "d"), Step(RTN(2), "e")))
    assert mix.brief == "rtn(bits=2 to 4), int8 on d"
    assert replace(mix, apart=True).brief == "rtn(bits=2 to 4), int8 on d, apart"
    assert Recipe((Step(RTN(4), "a"), Step(RTN(3, zero="none"), "b"))).brief == (
        "rtn(bits=4) on a, rtn(bits=3, zero=none) on b"
    )
    for plain in (Recipe(()), Recipe.of(Int8()), Recipe((Step(RTN(4), "a.*"), Step(RTN(3))))):
        assert plain.brief == str(plain)


def test_knobs_are_the_fields() -> None:
    @dataclass(frozen=True)
    class Other(Technique):
        name = "other"
        pillar = "compress"
        depth: int = 2
        layers: tuple[int, ...] = field(default=(1, 2))

    assert Other(depth=5).knobs() == {"depth": 5, "layers": (1, 2)}
    assert Other.space() == {}


def test_a_layer_may_have_knobs_of_its_own() -> None:
    recipe = Recipe((Step(RTN(4), "a.*", (("a.b", RTN(2)),)), Step(RTN(8))))
    steps = [recipe.step_for(name) for name in ("a.b", "a.c", "b")]
    found = [(step[0], step[1].technique) for step in steps if step is not None]
    assert found == [(1, RTN(2)), (1, RTN(4)), (2, RTN(8))]
    assert recipe.to_dict()["steps"][0]["layers"] == {"a.b": {"bits": 2}}
