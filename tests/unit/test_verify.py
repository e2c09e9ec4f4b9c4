from __future__ import annotations

import dataclasses

import pytest

from agent_swarm.operations.verify import Probed, judge

SAID = {
    "clock_ns": "1000500000000",
    "host_name": "fix-1",
    "machine_id": "a" * 32,
    "host_key": "ssh-ed25519 AAAA",
    "random": "01",
    "boot_id": "u-1",
    "with_secrets": "0",
}
MINE = Probed(SAID, asked_at=1000.0, answered_at=1001.0)
SIBLING = Probed(
    {
        **SAID,
        "host_name": "fix-2",
        "machine_id": "b" * 32,
        "host_key": "ssh-ed25519 BBBB",
        "random": "02",
        "boot_id": "u-2",
    },
    asked_at=1000.0,
    answered_at=1001.0,
)


def failed(mine: Probed = MINE, sibling: Probed = SIBLING) -> set[str]:
    checks = judge(mine, host_name="fix-1", host_key="ssh-ed25519 AAAA", others={"fix-2": sibling})
    return {check.subject for check in checks if not check.holds}


def test_a_machine_of_its_own_passes_every_check():
    assert failed() == set()


@pytest.mark.parametrize(
    ("field", "value", "subject"),
    [
        ("host_name", "web", "host name"),
        ("host_key", "ssh-ed25519 CCCC", "host key"),
        ("machine_id", "", "machine-id"),
        ("clock_ns", "1003000000000", "clock"),
        ("clock_ns", "998000000000", "clock"),
    ],
)
def test_what_is_not_its_own_is_told(field, value, subject):
    assert failed(dataclasses.replace(MINE, said={**SAID, field: value})) == {subject}


@pytest.mark.parametrize("field", ["machine_id", "host_key", "random", "boot_id"])
def test_what_it_shares_with_a_sibling_is_told(field):
    twin = dataclasses.replace(SIBLING, said={**SIBLING.said, field: SAID[field]})
    assert failed(sibling=twin) == {f"own {field.replace('_', '-')}"}


def test_the_evidence_names_the_sibling():
    twin = dataclasses.replace(SIBLING, said={**SIBLING.said, "random": SAID["random"]})
    checks = judge(MINE, host_name="fix-1", host_key="ssh-ed25519 AAAA", others={"fix-2": twin})
    assert next(check.evidence for check in checks if check.subject == "own random") == "same as fix-2"
