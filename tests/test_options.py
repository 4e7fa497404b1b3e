"""Options: precedence of defaults, environment and blocks; per thread; clear errors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from graphkb.ir.errors import OptionError
from graphkb.runtime.options import VARIABLES, Options, current, options, resolve


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():  # nothing here compiles, so the user's kernel cache stays as it is
        monkeypatch.delenv(variable, raising=False)


def test_defaults() -> None:
    assert current() == Options("auto", False, None, "host", "silent", 3, 64, False, "auto", 0)


def test_environment_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"mode": "interpret", "debug": "1", "dump": "there", "target": "x86-64-v3", "cache_size": "3"}
    settings |= {"kernel_cache": "there", "threads": "2", "dynamic_after": "5"}
    for name, text in settings.items():
        monkeypatch.setenv(VARIABLES[name], text)
    monkeypatch.setenv(VARIABLES["on_recompile"], "")
    assert current() == Options("interpret", True, "there", "x86-64-v3", "silent", 5, 3, False, "there", 2)


def test_blocks_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHKB_MODE", "interpret")
    with options(mode="native", debug=True) as inside:
        assert inside == current()
        assert (inside.mode, inside.debug) == ("native", True)
        with options(mode="auto", dump=Path("folder")):
            assert (current().mode, current().debug, current().dump) == ("auto", True, "folder")
            with options(dump=None):
                assert current().dump is None
        assert (current().mode, current().dump) == ("native", None)
    assert current().mode == "interpret"


def test_a_block_ends_after_an_error() -> None:
    with pytest.raises(KeyError), options(mode="native"):
        raise KeyError
    assert current().mode == "auto"


def test_as_a_decorator() -> None:
    @options(mode="interpret")
    def inner(depth: int) -> list[str]:
        return [current().mode, *(inner(depth - 1) if depth else [])]

    assert inner(2) == ["interpret"] * 3
    assert current().mode == "auto"


def test_one_block_may_be_entered_again() -> None:
    block = options(debug=True)
    for _ in range(2):
        with block, block:
            assert current().debug
        assert not current().debug


def test_other_threads_do_not_see_it() -> None:
    seen: list[str] = []
    with options(mode="interpret"):
        thread = threading.Thread(target=lambda: seen.append(current().mode))
        thread.start()
        thread.join()
    assert seen == ["auto"]


ERRORS: list[tuple[dict[str, Any], str]] = [
    (
        {"modus": "auto"},
        "options: there is no option 'modus'; expected one of mode, debug, dump, target, on_recompile, dynamic_after, "
        "cache_size, fastmath, kernel_cache, threads, recycle, pack_weights, progress",
    ),
    ({"mode": "fast"}, "options: mode is 'fast': expected 'auto', 'native' or 'interpret'"),
    ({"mode": None}, "options: mode is None: expected 'auto', 'native' or 'interpret'"),
    ({"debug": "perhaps"}, "options: debug is 'perhaps': expected True or False (in the environment: 1 or 0)"),
    ({"debug": 2}, "options: debug is 2: expected True or False (in the environment: 1 or 0)"),
    ({"dump": ""}, "options: dump is '': expected the path of a folder, or None"),
    ({"dump": 3}, "options: dump is 3: expected the path of a folder, or None"),
    ({"on_recompile": True}, "options: on_recompile is True: expected 'silent', 'warn' or 'error'"),
    ({"dynamic_after": -1}, "options: dynamic_after is -1: expected an integer of at least 0"),
    ({"cache_size": 0}, "options: cache_size is 0: expected an integer of at least 1"),
    ({"cache_size": True}, "options: cache_size is True: expected an integer of at least 1"),
    ({"kernel_cache": ""}, 'options: kernel_cache is \'\': expected "auto", "off" or the path of a folder'),
    ({"kernel_cache": 7}, 'options: kernel_cache is 7: expected "auto", "off" or the path of a folder'),
    ({"threads": -1}, 'options: threads is -1: expected an integer of at least 1, or "auto"'),
    ({"threads": False}, 'options: threads is False: expected an integer of at least 1, or "auto"'),
    ({"threads": "all"}, "options: threads is 'all': expected an integer of at least 1, or \"auto\""),
]


@pytest.mark.parametrize(
    ("given", "meant"),
    [("off", "off"), ("0", "off"), (False, "off"), ("1", "auto"), (True, "auto"), ("auto", "auto"), (Path("a"), "a")],
)
def test_ways_to_name_the_kernel_cache(given: object, meant: str) -> None:
    with options(kernel_cache=given) as inside:
        assert inside.kernel_cache == meant


@pytest.mark.parametrize(("given", "meant"), [("auto", 0), (0, 0), ("0", 0), (3, 3), ("3", 3)])
def test_ways_to_give_the_threads(given: object, meant: int) -> None:
    with options(threads=given) as inside:
        assert inside.threads == meant


@pytest.mark.parametrize(("chosen", "text"), ERRORS)
def test_bad_options(chosen: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        options(**chosen)
    assert str(caught.value) == text
    with pytest.raises(OptionError):
        resolve(chosen)


def test_a_bad_target_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"options: target is 'z80': expected 'host', 'x86-64', .* or 'wasm32'"):
        options(target="z80")


def test_a_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHKB_CACHE_SIZE", "many")
    with pytest.raises(OptionError) as caught:
        current()
    expected = "the environment variable GRAPHKB_CACHE_SIZE is 'many': expected an integer of at least 1"
    assert str(caught.value) == expected
    with options(cache_size=2):
        assert current().cache_size == 2


def test_resolve() -> None:
    given = Options(mode="native")
    assert resolve(given) is given
    with options(debug=True):
        assert resolve(None) == Options(debug=True)
        assert resolve({"mode": "interpret"}) == Options(mode="interpret", debug=True)
