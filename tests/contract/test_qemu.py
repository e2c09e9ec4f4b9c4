"""The provider contract, on real QEMU processes. The first class needs no guest: its disk is empty, and the
BIOS finds nothing to start. The others boot the base image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from agent_swarm.files import remove_tree
from agent_swarm.guest import cloudinit, keys
from agent_swarm.model import Kind, Resources, SshEndpoint
from agent_swarm.providers.qemu import create_provider
from agent_swarm.testing.provider_contract import (
    LiveMachineContract,
    ProviderContract,
    ProviderSubject,
    RunningMachineContract,
)
from tests.support.plain_ssh import ssh
from tests.support.qemu import RESOURCES, empty_image, emulated

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from agent_swarm.model import Endpoint, EnvironmentId, Image, Seed
    from agent_swarm.paths import Paths
    from agent_swarm.providers.base import ProviderContext


class QemuSubject(ProviderSubject):
    boot_timeout_s = 900.0  # beside the boots of the shared machines
    create_provider = staticmethod(create_provider)

    @classmethod
    def damage(cls, context: ProviderContext, identifier: EnvironmentId) -> None:
        (context.paths.machine(Kind.PROJECT, identifier) / "layers" / "0001.qcow2").unlink()


class TestQemu(QemuSubject, ProviderContract):
    resources: ClassVar[Resources] = RESOURCES
    kill_instants = 6

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderContext]:
        """A state directory whose path needs care in QEMU's options."""
        found = emulated(tmp_path_factory.mktemp("state, with = and space"))
        yield found
        remove_tree(found.paths.run)

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, tmp_path_factory: pytest.TempPathFactory) -> Image:
        return empty_image(tmp_path_factory.mktemp("image"))


class GuestSubject(QemuSubject):
    """Machines that boot the base image."""

    resources: ClassVar[Resources] = Resources(cpus=2, memory_mib=768, disk_gib=20)
    paths: ClassVar[Paths]

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, base_image: Image, context: ProviderContext) -> Image:
        cls.paths = context.paths
        return base_image

    @classmethod
    def seed(cls, identifier: EnvironmentId, host_name: str) -> Seed:
        key = keys.ensure_client_key(cls.paths)
        return cloudinit.make_seed(
            environment=identifier, host_name=host_name, authorized_key=key, install_agent=False
        )

    @classmethod
    def execute(cls, endpoint: Endpoint, argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        assert isinstance(endpoint, SshEndpoint)
        return ssh(cls.paths.ssh_key, endpoint, argv)


@pytest.mark.machine
class TestRunningQemu(GuestSubject, RunningMachineContract):
    """What holds of machines that booted."""


@pytest.mark.machine
class TestLiveQemu(GuestSubject, LiveMachineContract):
    """What holds of machines that go on from saved memory."""

    kill_instants = 5
