"""The HTML report: complete, honest, safe, and drawn to scale."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tauten.core.printing import printable
from tauten.report.heat import heat_maps
from tauten.report.html import render_html
from tauten.report.plot import pareto_plot
from tauten.report.trials import TrialRow, trial_rows

Facts = dict[str, Any]


class Page(HTMLParser):
    """A page's tags and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: str = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, key: str) -> list[str]:
        """Values of an attribute of all tags of a kind that have it, in order."""
        return [attrs[key] or "" for name, attrs in self.tags if name == tag and key in attrs]


def test_every_trial_and_layer_appears(manifest: Facts, timing: Facts) -> None:
    page = Page(render_html(manifest, timing))
    assert page.all("tr", "data-trial") == [str(n) for n in range(1, 9)]
    assert page.all("tr", "data-layer") == [layer["name"] for layer in manifest["layers"]]
    for trial in manifest["trials"]:
        assert trial["label"] in page.text
    assert "scales overflow float16" in page.text


def test_every_measured_trial_is_drawn_in_both_layouts(manifest: Facts, timing: Facts) -> None:
    drawn = Page(render_html(manifest, timing)).all("g", "data-trial")
    assert sorted(drawn) == sorted(2 * [str(n) for n in range(1, 8)])


def test_points_are_placed_in_the_order_of_their_figures(manifest: Facts, timing: Facts) -> None:
    html = render_html(manifest, timing)
    wide = html[html.index('<svg class="wide"') : html.index('<svg class="narrow"')]
    circle = r'data-trial="(\d+)".*?<circle cx="([\d.]+)" cy="([\d.]+)"'
    places = {int(n): (float(x), float(y)) for n, x, y in re.findall(circle, wide, re.DOTALL)}
    assert len(places) == 7
    found = {n: manifest["trials"][n - 1]["measurement"] for n in places}
    by_size = sorted(places, key=lambda n: found[n]["size_bytes"])
    by_drop = sorted(places, key=lambda n: found[n]["quality"]["drop"]["value"])
    assert by_size == sorted(places, key=lambda n: places[n][0])
    assert by_drop == sorted(places, key=lambda n: -places[n][1])


def test_names_are_escaped(manifest: Facts, timing: Facts) -> None:
    evil = "<script>alert('x')</script>"
    manifest["source"]["name"] = evil
    manifest["reason"] = evil
    manifest["data"]["name"] = evil
    manifest["trials"][0].update(label=evil, verdict=evil)
    manifest["trials"][7]["error"] = f'"{evil}'
    manifest["layers"][5].update(name=f'">{evil}', reason=evil, format=evil)
    timing["machine"]["cpu"] = evil
    html = render_html(manifest, timing)
    assert "<script>alert" not in html
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert f'">{evil}' in page.all("tr", "data-layer")


def test_nothing_is_loaded_from_elsewhere(manifest: Facts, timing: Facts) -> None:
    html = render_html(manifest, timing)
    page = Page(html)
    assert not re.search(r"https?:|url\(|@import", html)
    for tag, attrs in page.tags:
        assert not {"src", "href", "srcset", "data"} & set(attrs), tag
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}


def test_certified_run_says_what_holds(manifest: Facts, timing: Facts) -> None:
    text = Page(render_html(manifest, timing)).text
    assert "Certified within 2%" in text
    assert "Not certified" not in text
    assert "3.0x smaller than bf16 (269 MB)" in text
    assert "1.4x slower than the original" in text
    assert "On 42 documents that no choice was made on" in text
    assert "With 95% confidence the loss is below 1.90%" in text


def test_uncertified_run_says_so(uncertified: Facts, timing: Facts) -> None:
    text = Page(render_html(uncertified, timing)).text
    assert "Not certified" in text
    assert "Certified within" not in text
    assert "on the sealed test split the drop may be 2.29%" in text
    assert "The goal allows 2%, so that isn't shown to hold." in text


def test_without_data_no_drop_is_claimed(plain: Facts) -> None:
    text = Page(render_html(plain, {})).text
    assert "Not measured" in text
    assert "no drop is claimed" in text
    assert "certified within" not in text.lower()
    assert "Nothing was timed" in text
    assert "What was tried" not in text


def test_absent_and_infinite_figures_dont_break_it(manifest: Facts, timing: Facts) -> None:
    manifest["source"].update(bf16_bytes=None, fingerprint=None, parameters=None)
    manifest.update(memory_bytes=None, test=None, data=None, certified=False)
    manifest["goal"]["max_drop"] = None
    first, second = (trial["measurement"] for trial in manifest["trials"][:2])
    first["kl"] = None
    second["quality"]["value"] = float("inf")
    second["quality"]["drop"].update(value=float("inf"), low=float("nan"), high=float("inf"))
    timing["chosen"].update(prefill_s=None, tokens_per_s=None, rss_bytes=None)
    page = Page(render_html(manifest, timing))
    assert "2" not in page.all("g", "data-trial")
    assert "its rise isn't finite: trial 2" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text


def test_chosen_as_nearest_miss_is_not_shown_as_a_success(manifest: Facts, timing: Facts) -> None:
    manifest.update(chosen=4, certified=False)
    text = Page(render_html(manifest, timing)).text
    assert "chosen as the nearest miss" in text
    assert "chosen: bound 4.9% is above 2%" in text


def _row(number: int, size: int, drop: float) -> TrialRow:
    return TrialRow(
        number, "r", "plain", False, size, drop, drop - 0.001, drop + 0.001, *(None,) * 3, "", ""
    )


@pytest.mark.parametrize("drops", [(0.01, 0.012), (-0.03, -0.01), (0.0, 0.0), (1e-5, 40.0)])
@pytest.mark.parametrize("limit", [None, 0.0, 0.02])
def test_all_marks_lie_inside_the_plot(drops: tuple[float, float], limit: float | None) -> None:
    rows = [_row(1, 500, drops[0]), _row(2, 500, drops[1])]
    plot = pareto_plot(rows, limit, None, 380, 340)
    assert plot is not None
    for point in plot.points:
        assert plot.left < point.x < plot.right
        assert plot.top < point.y_high <= point.y <= point.y_low < plot.bottom
    assert len(plot.y_ticks) >= 2
    assert len({tick.label for tick in plot.y_ticks}) == len(plot.y_ticks)
    assert (plot.max_drop is None) == (limit is None)


def test_numbers_stand_in_marks_that_do_not_overlap() -> None:
    """Of two trials nearly alike the chosen one, drawn on top, keeps its number."""
    chosen = replace(_row(2, 84_500_000, 0.0117), state="chosen")
    rows = [_row(1, 84_400_000, 0.0115), chosen, _row(3, 72_000_000, 0.037)]
    plot = pareto_plot(rows, 0.02, None, 380, 340)
    assert plot is not None
    numbered = {point.trial.number: point.numbered for point in plot.points}
    assert numbered == {1: False, 2: True, 3: True}
    assert plot.points[-1].trial.number == 2


def test_axis_bends_only_for_drops_that_span_decades() -> None:
    near = pareto_plot([_row(1, 1, 0.01), _row(2, 2, 0.03)], 0.02, None, 380, 340)
    far = pareto_plot([_row(1, 1, 0.0005), _row(2, 2, 3.0)], 0.02, None, 380, 340)
    assert near is not None and not near.bent
    assert far is not None and far.bent


def test_frontier_and_states(manifest: Facts) -> None:
    manifest["trials"][4]["measurement"]["size_bytes"] = 90_000_000  # larger and worse than 4
    rows = trial_rows(manifest)
    assert [row.number for row in rows if row.frontier] == [1, 2, 3, 4, 6, 7]
    states = ["within"] * 3 + ["chosen"] + ["missed"] * 3 + ["failed"]
    assert [row.state for row in rows] == states


def test_heat_maps_show_each_block_by_bits_and_by_what_it_minds(manifest: Facts) -> None:
    layers = [layer for layer in manifest["layers"] if ".layers." in layer["name"]]
    units = sorted({layer["unit"] for layer in layers})
    manifest["levels"] = {
        "techniques": ["int8", "rtn(bits=2)", "kept"],
        "units": {
            name: {"size_bytes": [2, 1, 4], "losses": [1e-6, 10.0 ** -(1 + index % 4), 0.0]}
            for index, name in enumerate(units)
        },
    }
    bits, losses = heat_maps(manifest)
    assert bits.blocks == losses.blocks == tuple(range(1 + max(bits.blocks)))
    assert len(bits.rows) * len(bits.blocks) == len(layers)
    strengths = {c.title.split(": ")[0]: c.strength for r in bits.rows for c in r.cells if c}
    assert strengths["model.layers.0.mlp.up_proj"] == 100, "it was kept"
    assert strengths["model.layers.1.mlp.up_proj"] < 20
    minded = {c.title.split(": ")[0]: c.strength for r in losses.rows for c in r.cells if c}
    by_loss = [minded[f"{units[index]}"] for index in range(4)]  # 10, 1, 0.1 and 0.01 percent
    assert by_loss == sorted(by_loss, reverse=True) and len(set(by_loss)) == 4
    steps = [a - b for a, b in itertools.pairwise(by_loss)]
    assert max(steps) - min(steps) <= 1, "each factor of ten is as far from the next"
    page = Page(render_html(manifest, {}))
    assert f"{layers[0]['name']}: 16.00" in page.all("td", "title")


def test_predictions_stand_beside_what_was_measured(manifest: Facts) -> None:
    assert "Predicted" not in Page(render_html(manifest, {})).text
    manifest["trials"][1]["predicted_kl"] = 0.03219
    assert "0.0322" in Page(render_html(manifest, {})).text


def test_control_characters_in_names_are_written_out(manifest: Facts, timing: Facts) -> None:
    evil, shown = "a\x1b[2J\u202eb\udcff", r"a\x1b[2J\u202eb\udcff"
    manifest["source"]["name"] = f"models/{evil}"
    manifest["trials"][0]["label"] = manifest["layers"][0]["name"] = evil
    html = render_html(manifest, timing)
    assert html.encode() and printable(html) == html and html.count(shown) > 4
