"""The terminal's summary and inspection."""

import io
from typing import Any

import pytest
from rich.console import Console

from tauten.data.texts import BUILT_IN
from tauten.report.facts import DEFAULT_TEXT
from tauten.report.terminal import print_inspect, print_result

Facts = dict[str, Any]


def _console() -> Console:
    return Console(file=io.StringIO(), width=80, color_system=None)


def _result(manifest: Facts, timing: Facts, path: str = "OUT") -> str:
    console = _console()
    print_result(manifest, timing, console, path)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _inspect(facts: Facts) -> str:
    console = _console()
    print_inspect(facts, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_result_says_what_more_effort_would_bring(manifest: Facts, timing: Facts) -> None:
    assert "--effort" not in _result(manifest, timing)
    timing["more"] = {"effort": "thorough", "gain": 0.01, "time_s": 700.0}
    words = _words(_result(manifest, timing))
    size = 0.01 * manifest["weights"]["size_bytes"] / 1e3
    said = f"tauten optimize ... --effort thorough about {size:.0f} kB (1.00%) less, in about"
    assert f"{said} 12 min 0 s" in words


def test_result_says_what_came_out(manifest: Facts, timing: Facts) -> None:
    text = _result(manifest, timing)
    words = _words(text)
    assert "SmolLM2-135M-Instruct: Certified within 2%" in words
    assert "92.9 MB went in, 88.3 MB came out" in words
    assert "1.4x slower than the original" in words
    assert "On 42 documents that no choice was made on" in words
    assert max(map(len, text.splitlines())) <= 80


def test_result_marks_the_chosen_trial_and_shows_the_failed_one(
    manifest: Facts, timing: Facts
) -> None:
    lines = _result(manifest, timing).splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("*", "!"))] == ["*4", "!8"]
    assert "lm_head: scales" in _words("\n".join(lines))


def test_certified_result_names_the_limit_that_gives_a_smaller_file(
    manifest: Facts, timing: Facts
) -> None:
    end = _words(_result(manifest, timing, "my out")[-400:])
    assert "--max-drop 4.9% would take trial 5: 80.4 MB" in end
    assert "tauten run 'my out' \"Once upon a time\"" in end
    assert "tauten report 'my out'" in end


def test_result_without_a_fitting_trial_names_the_limit_that_would_accept_one(
    manifest: Facts, timing: Facts
) -> None:
    manifest["trials"] = manifest["trials"][4:]
    manifest.update(chosen=0, certified=False, test=None, reason="no recipe met the goal")
    text = _words(_result(manifest, timing))
    assert "Not certified" in text
    assert "--max-drop 4.9% would accept trial 1: 80.4 MB" in text


def test_a_certificate_on_the_default_text_says_so_in_the_first_line(manifest: Facts) -> None:
    assert DEFAULT_TEXT == BUILT_IN
    manifest["data"] = {"name": BUILT_IN}
    first = _result(manifest, {}).splitlines()[0]
    assert "Certified within 2% on the default text" in first


def test_uncertified_result_asks_for_more_data(uncertified: Facts) -> None:
    text = _words(_result(uncertified, {}))
    assert "Not certified" in text
    assert "Certified within" not in text
    assert "more documents narrow the interval" in text


def test_result_without_data_claims_no_drop(plain: Facts) -> None:
    text = _words(_result(plain, {}))
    assert "Not measured" in text
    assert "no drop is claimed" in text
    assert "tauten optimize SmolLM2-135M-Instruct --data TEXT" in text


def test_absent_figures_dont_break_it(manifest: Facts, timing: Facts) -> None:
    manifest.update(memory_bytes=None, test=None, data=None, reason="")
    manifest["source"]["bf16_bytes"] = None
    drop = manifest["trials"][3]["measurement"]["quality"]["drop"]
    drop.update(value=float("inf"), low=float("nan"), high=float("inf"))
    timing["original"]["rss_bytes"] = None
    text = _result(manifest, timing)
    assert "None" not in text
    assert "nan" not in text
    assert "isn't finite" in text


def test_brackets_in_names_are_text(manifest: Facts, timing: Facts) -> None:
    manifest["source"]["name"] = "my[bold]model[/]"
    manifest["trials"][1]["label"] = "[red]x[/wrong]"
    text = _result(manifest, timing)
    assert "my[bold]model[/]" in text
    assert "[red]x[/wrong]" in text


def test_inspect_collapses_equal_blocks(inspect_facts: Facts) -> None:
    text = _inspect(inspect_facts)
    assert "134.5M parameters, 269 MB, 30 blocks, 121 units" in text
    assert "30 x model.layers.*" in text
    assert text.count("self_attn.q_proj, k_proj, v_proj") == 1
    assert "model.embed_tokens = lm_head" in text
    assert "2.1 GB of memory are free" in text
    shares = [float(line.split()[-1][:-1]) for line in text.splitlines() if line.endswith("% ")]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_inspect_keeps_blocks_apart_that_differ(inspect_facts: Facts) -> None:
    inspect_facts["units"][1]["shapes"] = [[600, 576]]
    text = _inspect(inspect_facts)
    assert "model.layers.0\n" in "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert "29 x model.layers.1-29" in text


def test_inspect_of_a_plain_module(inspect_facts: Facts) -> None:
    unit = {"names": ["0"], "block": "", "shapes": [[20, 10]], "size_bytes": 800}
    inspect_facts.update(blocks=[], units=[unit], tied=[], notes=[], architecture=None)
    text = _inspect(inspect_facts)
    assert "0 blocks, 1 unit" in text
    assert "20 x 10" in text
