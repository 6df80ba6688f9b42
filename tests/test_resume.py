"""Commands of training that are killed end where they would have ended."""

import random

import pytest

from benchmarks.robustness.resume import COMMANDS, interrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_command_killed_at_a_random_moment_ends_with_the_same_files(name, tmp_path):
    choose = random.Random(0).uniform  # noqa: S311
    assert "killed 1 times" in interrupt(COMMANDS[name](tmp_path), 1, choose)
