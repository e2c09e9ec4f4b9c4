"""What a guest is told when it goes on from saved memory, by way of an agent whose guest is a clock."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from agent_swarm.errors import MachineError
from agent_swarm.guest import identity
from agent_swarm.guest.agent import Executed
from agent_swarm.model import SESSION_SECRETS

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW_NS = 1_750_000_000_123_456_789
ONES = {"environment": "0123456789ab", "host_name": "fix-1"}


@dataclass
class Agent:
    """An agent as `identity` uses it. The program that is run does one thing: it sets the clock."""

    behind_ns: int = 0
    answer: Executed = field(default_factory=lambda: Executed(0, b"", b""))
    clock_can_be_set: bool = True
    vectors: list[list[str]] = field(default_factory=list)
    given: list[dict[str, str]] = field(default_factory=list)

    def call(self, command: str) -> object:
        assert command == "guest-get-time"
        return NOW_NS - self.behind_ns

    def execute(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Executed:
        words = stdin.decode().split("\0")
        fields = dict(zip(words[::2], words[1::2], strict=True))
        self.vectors.append(list(argv))
        self.given.append(fields)
        if self.clock_can_be_set:
            self.behind_ns -= int(fields["offset_s"]) * 10**9 + int(fields["offset_ns"])
        return self.answer


@pytest.fixture
def agent(monkeypatch):
    monkeypatch.setattr(identity.time, "time_ns", lambda: NOW_NS)
    return Agent()


def renew(agent, scratch, *, keep_secrets: bool = False) -> identity.Renewed:
    return identity.renew(agent, "x86_64", **ONES, keep_secrets=keep_secrets, scratch=scratch)


# The program


@pytest.mark.needs("perl")
@pytest.mark.parametrize("switches", [["-c"], ["-Mstrict", "-Mwarnings", "-c"]], ids=["plain", "strict"])
def test_the_program_is_one_that_perl_can_read(switches):
    done = subprocess.run(
        ["perl", *switches, "-e", identity.PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.stderr == "-e syntax OK\n"
    assert done.returncode == 0


@pytest.mark.needs("ssh-keygen")
def test_the_program_is_given_all_that_it_reads(agent, tmp_path):
    renew(agent, tmp_path)
    names = {part.split("}")[0] for part in identity.PROGRAM.split("$in{")[1:]}
    assert names == set(agent.given[0])


def test_the_program_names_no_other_program_than_systemctl():
    assert "system(" not in identity.PROGRAM
    assert "`" not in identity.PROGRAM
    assert identity.PROGRAM.count("exec ") == 1


# Secrets


@pytest.mark.needs("ssh-keygen")
def test_nothing_secret_stands_in_an_argument_vector(agent, tmp_path):
    renew(agent, tmp_path)
    assert agent.vectors == [["/usr/bin/perl", "-e", identity.PROGRAM]]
    given = agent.given[0]
    assert given["private_key"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    told = "\n".join(agent.vectors[0])
    for secret in (*given["private_key"].splitlines()[1:-1], given["entropy"], given["machine_id"]):
        assert secret not in told


@pytest.mark.needs("ssh-keygen")
def test_the_private_key_is_in_the_programs_input_alone(agent, tmp_path):
    renewed = renew(agent, tmp_path)
    key = agent.given[0]["private_key"].splitlines()[1:-1]
    assert not any(line in str(renewed) for line in key)
    assert not any(
        line in value for line in key for name, value in agent.given[0].items() if name != "private_key"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("ssh-keygen")
def test_a_program_that_fails_leaves_no_key_behind_and_none_in_the_error(agent, tmp_path):
    agent.answer = Executed(1, b"", b"RNDADDENTROPY: Operation not permitted\n")
    with pytest.raises(MachineError, match="could not be made itself") as caught:
        renew(agent, tmp_path)
    assert caught.value.details == "RNDADDENTROPY: Operation not permitted"
    assert list(tmp_path.iterdir()) == []


# Identity


@pytest.mark.needs("ssh-keygen")
def test_a_guest_with_anothers_memory_is_given_all_that_is_its_own(agent, tmp_path):
    renewed = renew(agent, tmp_path)
    given = agent.given[0]
    assert (given["id"], given["host"]) == (ONES["environment"], ONES["host_name"])
    assert given["public_key"] == f"{renewed.host_key}\n"
    assert renewed.host_key.split()[0] == "ssh-ed25519"
    assert len(renewed.host_key.split()) == 2
    assert given["machine_id"] == renewed.machine_id
    assert len(bytes.fromhex(renewed.machine_id)) == 16
    assert given["secrets"] == SESSION_SECRETS


@pytest.mark.needs("ssh-keygen")
def test_no_two_guests_are_given_the_same(tmp_path, agent):
    renewed = [renew(agent, tmp_path) for _ in range(2)]
    assert renewed[0].host_key != renewed[1].host_key
    assert renewed[0].machine_id != renewed[1].machine_id
    assert agent.given[0]["entropy"] != agent.given[1]["entropy"]


@pytest.mark.needs("ssh-keygen")
@pytest.mark.parametrize("keep", [False, True], ids=["ended", "kept"])
def test_processes_with_secrets_are_kept_where_that_was_asked_for_alone(agent, tmp_path, keep):
    renew(agent, tmp_path, keep_secrets=keep)
    assert bool(agent.given[0]["keep_secrets"]) is keep


def test_a_guest_that_stays_itself_is_given_entropy_and_the_time_alone(agent):
    identity.refresh(agent, "x86_64")
    given = agent.given[0]
    assert given["id"] == ""
    assert set(given) == {"entropy", "gettime", "settime", "offset_s", "offset_ns", "id"}
    assert len(bytes.fromhex(given["entropy"])) == identity.ENTROPY_BYTES


# The clock


@pytest.mark.parametrize("behind_ns", [0, 3_500_000_000, 7 * 86_400 * 10**9 + 1, -2_250_000_000, -1])
def test_the_clock_is_set_by_what_it_is_off(agent, behind_ns):
    agent.behind_ns = behind_ns
    identity.refresh(agent, "x86_64")
    assert agent.behind_ns == 0
    assert len(agent.given) == 1
    assert 0 <= int(agent.given[0]["offset_ns"]) < 10**9


def test_a_clock_that_cannot_be_set_is_an_error(agent):
    agent.behind_ns, agent.clock_can_be_set = 3_600 * 10**9, False
    with pytest.raises(MachineError, match=r"off by 3600\.0 s and cannot be set") as caught:
        identity.refresh(agent, "x86_64")
    assert caught.value.hint


@pytest.mark.parametrize("told", [None, "now", {"time": 1}, 1.5])
def test_an_agent_that_does_not_tell_the_time_is_an_error(agent, monkeypatch, told):
    monkeypatch.setattr(agent, "call", lambda _: told)
    with pytest.raises(MachineError, match="does not tell the time"):
        identity.refresh(agent, "x86_64")
    assert agent.vectors == []


def test_a_program_that_says_nothing_is_told_by_its_code(agent):
    agent.answer = Executed(-9, b"", b"")
    with pytest.raises(MachineError) as caught:
        identity.refresh(agent, "x86_64")
    assert caught.value.details == "its program ended with -9"
