"""The export command in this process."""

from __future__ import annotations

import pytest

from alignment_lab.export import __main__ as exporting


def export(*words, expect: int = 0) -> None:
    assert exporting.main([str(word) for word in words]) == expect


@pytest.fixture
def refused(capsys):
    """`refused(run, "--push", "x")`: the sentence that the user reads."""

    def sentence(*words) -> str:
        export(*words, expect=2)
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message.removeprefix("error: ").rstrip("\n")

    return sentence
