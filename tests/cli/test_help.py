"""What a person meets first: help in groups with examples first, suggestions, completion, and the same defaults."""

import inspect
import math
import subprocess
import sys
from typing import Any

import click
import pytest

import commands
import modelopt_rs as mo
from modelopt_rs.cli import main
from modelopt_rs.cli.app import app

FUNCTIONS = {
    "quantize": mo.quantize_file,
    "optimize": mo.optimize_file,
    "prune": mo.prune_file,
    "crop": mo.crop_file,
    "dequantize": mo.dequantize_file,
    "compare": mo.compare_files,
    "inspect": mo.inspect_file,
}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", app.commands)
def test_help_has_examples_first_then_options_in_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = shown(capsys, name, "--help")
    assert code == 0
    titles = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "Examples"
    assert out.index("modelopt-rs " + name, out.index("Examples:")) < out.index("Running:")
    order = ["Examples", "Options", "ONNX models only", "Output", "Running"]
    assert titles == [title for title in order if title in titles]
    assert "  ONNX: " not in out.replace("ONNX: what is fast", "")
    assert "    \b" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_list_of_commands_cuts_no_sentence_and_values_keep_their_spelling(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = shown(capsys, "--help")
    assert "..." not in out.partition("Commands:")[2]
    _, out, _ = shown(capsys, "quantize", "--help")
    assert " symmetric, or asymmetric: with a zero point." in out


def test_options_of_onnx_models_stand_apart(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = shown(capsys, "quantize", "--help")
    own, onnx = out.index("\nOptions:"), out.index("\nONNX models only:")
    assert own < out.index("--bits [8|4|2]") < onnx < out.index("--target") < out.index("\nOutput:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantise", "x"], "No such command 'quantise'; did you mean quantize?"),
        (["prune", "x", "--scope", "tensr"], "not one of 'tensor', 'row', 'global'; did you mean tensor?"),
        (["zzz"], "No such command 'zzz'; see modelopt-rs --help"),
    ],
)
def test_what_was_meant_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = shown(capsys, *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", "x", "--bit", "4"], "No such option '--bit'; did you mean --bits?"),
        (["inspect", "x", "--josn", "a"], "No such option '--josn'; did you mean --json?"),
        (["quantize", "x", "--keep", "0.5"], "No such option '--keep' of quantize: crop has it"),
        (["inspect", "x", "--bits", "4"], "No such option '--bits' of inspect: quantize has it"),
        (["prune", "x", "--target-size", "9MB"], "No such option '--target-size' of prune: optimize has it"),
        (["info", "--overwrite"], "of info: quantize, calibrate, optimize, prune, crop, dequantize have it"),
        (["quantize", "x", "--qqqq"], "No such option '--qqqq'."),
        (["--verson"], "--verson"),
    ],
)
def test_an_unknown_option_is_told_what_it_might_be_or_whose_it_is(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = shown(capsys, *arguments)
    assert code == 2
    assert said in err
    assert "did you mean --help" not in err


@pytest.mark.parametrize(
    ("arguments", "old", "new"),
    [
        (["prune", "x", "--keep", "2:4", "--dry-run"], "--keep", "--n-of-m"),
        (["prune", "x", "--keep=2:4", "--dry-run"], "--keep", "--n-of-m"),
        (["prune", "x", "--sparsity", "0.5", "--nan", "largest", "--dry-run"], "--nan", "--nonfinite"),
        (["crop", "x", "--keep", "0.5", "--what", "ffn", "--scope", "local"], "--scope local", "--scope group"),
        (["crop", "x", "--keep", "0.5", "--what", "ffn", "--scope=local"], "--scope local", "--scope group"),
    ],
)
def test_former_options_are_taken_and_said(
    arguments: list[str], old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = shown(capsys, *arguments)
    assert err.startswith(f"modelopt-rs: warning: {old} is now {new}; the old form is gone in version 0.3\n")
    assert "No such option" not in err
    assert "Invalid value" not in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MODELOPT_RS_COMPLETE", f"{shell}_source")
    if shell == "bash":
        monkeypatch.setattr(
            "click.shell_completion.BashComplete._check_version", lambda *_: None, raising=False
        )  # which looks for bash
    code, out, _ = shown(capsys)
    assert code == 0
    assert "modelopt-rs" in out
    monkeypatch.setenv("_MODELOPT_RS_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "modelopt-rs quantize --max-")
    monkeypatch.setenv("COMP_CWORD", "2" if shell != "fish" else "--max-")
    code, out, _ = shown(capsys)
    assert code == 0
    assert "--max-memory" in out
    assert "--max-layer-error" in out


def test_no_color_is_respected() -> None:
    code = "from modelopt_rs.cli.show import line, table; table(('a',), [('b',)]); line('c')"
    env = {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color", "PATH": "/usr/bin:/bin"}
    env["PYTHONPATH"] = ":".join(sys.path)
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "\x1b[3" not in out
    assert "\x1b[9" not in out


def test_the_table_of_options_is_made_from_the_code() -> None:
    assert commands.PAGE.read_text() == commands.page(), "run python tests/shared/commands.py"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_has_the_defaults_of_its_function(name: str) -> None:
    """H64. A switch is off where its function has False, and `--no-X` where it has True."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    options = {option.name: option for option in app.commands[name].params if isinstance(option, click.Option)}
    compared = 0
    for option_name, option in options.items():
        word = str(option_name).removeprefix("no_")
        if word not in parameters or option.multiple or parameters[word].default is inspect.Parameter.empty:
            continue
        theirs, ours = parameters[word].default, said(option)
        if word == "run":
            continue
        if isinstance(theirs, bool) or option.is_flag:
            assert bool(ours) is (bool(theirs) != str(option_name).startswith("no_")), word
        else:
            assert ours == theirs, word
        compared += 1
    assert compared >= 2


def said(option: click.Option) -> Any:
    """The default of an option as its function would get it."""
    value = option.to_info_dict()["default"]
    if option.name == "max_memory":
        from modelopt_rs.stream.memory import bytes_of

        return bytes_of("max_memory", value)
    if option.name in ("bits", "norm") and value is not None:
        return math.inf if value == "inf" else int(value)
    return {"none": None}.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("name", app.commands)
def test_help_says_that_a_model_is_run_on_samples_of_calibrate_where_there_are_some(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = shown(capsys, name, "--help")
    own = {option for each in app.commands[name].params for option in each.opts}
    said = "the samples of --calibrate" in " ".join(out.split())
    assert said == ({"--calibrate", "--inputs"} <= own)
