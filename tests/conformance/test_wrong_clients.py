"""Clients that are wrong on purpose, each in one way: the scenarios catch them all."""

import sys
from pathlib import Path

import pytest
from run import Authority, play
from runner_process import running
from scenario_data import load
from wrong_clients import WRONG

SCENARIOS = {scenario.name: scenario for scenario in load()}
PROGRAM = Path(__file__).with_name("wrong_clients.py")


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_client_is_caught(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), name]
    authority = Authority(tmp_path)
    # Long enough for a right client: who is caught by patience alone has waited where it should not.
    async with running(command, patience=20.0) as runner:
        # It is wrong in one way only.
        assert await play(SCENARIOS["describe-one-page"], runner, authority) == []
        assert await play(SCENARIOS[WRONG[name][1]], runner, authority) != []
