"""Completion in bash, zsh and fish: what each shell asks the program, and, where it is
installed, the shell itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

SHELLS = ("bash", "zsh", "fish")


def completions(program, shell, words):
    """Ask for completions of the last of `words` as the shell's script does,
    and return what it is given.
    """
    env = {"_XAI_TASKS_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(words)}
    env["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words) - 1)
    if shell == "fish":
        env["COMP_WORDS"] = " ".join(words[:-1])
    return program.run(env=env).out


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "completion"),
    [
        (["xai-tasks", "wa"], "wait"),
        (["xai-tasks", "wait", "--res"], "--resume"),
        (["xai-tasks", "report", "--jso"], "--json"),
    ],
)
def test_commands_and_options_are_completed(program, shell, words, completion):
    assert completion in re.split(r"[\s,]+", completions(program, shell, words))


@pytest.mark.parametrize("shell", SHELLS)
def test_files_are_left_to_the_shell(program, shell):
    assert "file" in completions(program, shell, ["xai-tasks", "wait", "--input", "x"])


@pytest.mark.parametrize("shell", SHELLS)
def test_help_names_the_line_for_each_shell(program, shell):
    text = program.run("--help").out
    assert f"_XAI_TASKS_COMPLETE={shell}_source xai-tasks" in text
    assert "xai-tasks" in program.run(env={"_XAI_TASKS_COMPLETE": f"{shell}_source"}).out


@pytest.fixture
def path(tmp_path):
    """A directory with the program under its name."""
    script = tmp_path / "xai-tasks"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m xai_tasks "$@"\n')
    script.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def ask(program, path, *command):
    done = subprocess.run(
        command, env=program.env | {"PATH": path}, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


def test_bash_completes(program, path):
    script = (
        'eval "$(_XAI_TASKS_COMPLETE=bash_source xai-tasks)"; COMP_WORDS=(xai-tasks wait --res); '
        'COMP_CWORD=2; _xai_tasks_completion xai-tasks; echo "${COMPREPLY[@]}"'
    )
    assert "--resume" in ask(program, path, "bash", "-c", script).split()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(program, path):
    script = (
        "_XAI_TASKS_COMPLETE=fish_source xai-tasks | source; complete -C 'xai-tasks wait --res'"
    )
    assert "--resume" in ask(program, path, "fish", "-c", script).split()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(program, path):
    # What zsh would offer is printed in place of `compadd` and
    # `_describe`, which need a line editor.
    script = (
        "compdef() { :; }; compadd() { print -l -- $@; }; _describe() { print -l -- ${(P)3}; }; "
        "words=(xai-tasks wait --res); CURRENT=3; "
        'eval "$(_XAI_TASKS_COMPLETE=zsh_source xai-tasks)"; _xai_tasks_completion'
    )
    assert "--resume" in ask(program, path, "zsh", "-fc", script)
