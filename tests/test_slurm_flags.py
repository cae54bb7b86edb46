"""What ``python -m slurm`` says about flags that it does not have."""

import re

import pytest

from slurm import __main__ as cli


@pytest.mark.parametrize("flag", ["--nonsense", "--dry-rum"])  # the second is like one that it has
def test_the_message_about_a_flag_names_the_command_whose_help_lists_the_flags(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "sweep.toml", flag])
    assert end.value.code == 2
    named = re.findall(r"python\S* .*?--help", capsys.readouterr().err)
    assert set(named) == {"python -m slurm submit --help"}


def test_the_help_of_all_commands_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in ("submit", "status", "transfer"))
