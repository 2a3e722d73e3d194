"""The command line, called in the test's own process."""

from __future__ import annotations

import sys

import pytest

from hotpolicy.launch import cli


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """-> exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["hotpolicy", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out, err
