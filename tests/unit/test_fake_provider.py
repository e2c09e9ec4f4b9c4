from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from agent_swarm import processes
from agent_swarm.errors import BootError, MachineError
from agent_swarm.events import Event, StepDone, StepStarted, ignore
from agent_swarm.model import LocalEndpoint, MachineState
from agent_swarm.providers.fake import create_provider
from agent_swarm.testing.subject import ProviderSubject, new_point, owned

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.model import Image
    from agent_swarm.providers.base import Provider, ProviderContext


def root(endpoint: object) -> Path:
    assert isinstance(endpoint, LocalEndpoint)
    return endpoint.root


class TestFakeProvider(ProviderSubject):
    create_provider = staticmethod(create_provider)

    def test_it_says_that_it_is_simulated_and_isolates_nothing(self, provider: Provider) -> None:
        assert provider.simulated
        assert "nothing is isolated" in provider.probe().warnings[0]

    @pytest.mark.parametrize("handle", ["", ".", "..", "../home", "a/b", "/etc"])
    def test_what_is_no_handle_removes_nothing(
        self, context: ProviderContext, provider: Provider, image: Image, handle: str
    ) -> None:
        kept = provider.create(self.project_spec(image), ignore)
        with pytest.raises(MachineError, match="is not a handle"):
            provider.delete(handle)
        with pytest.raises(MachineError, match="is not a handle"):
            provider.discard(kept, handle)  # type: ignore[arg-type]
        assert provider.inspect(kept).state is MachineState.STOPPED

    def test_inspect_of_what_is_no_handle_does_not_raise(self, provider: Provider) -> None:
        assert provider.inspect("").state is MachineState.BROKEN

    def test_an_image_that_is_a_directory_is_the_first_disk(
        self, provider: Provider, image: Image, tmp_path: Path
    ) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "motd").write_text("hello")
        _, endpoint = self.boot(provider, self.project_spec(dataclasses.replace(image, disk=tmp_path)))
        assert (root(endpoint) / "etc" / "motd").read_text() == "hello"

    def test_a_clone_keeps_modes_and_symlinks_and_leaves_out_what_is_no_file(
        self, provider: Provider, image: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project, endpoint = self.boot(provider, self.project_spec(image))
        disk = root(endpoint)
        (disk / "tool").write_text("#!/bin/sh\n")
        (disk / "tool").chmod(0o750)
        (disk / "link").symlink_to("/etc/nowhere")
        os.mkfifo(disk / "pipe")
        monkeypatch.chdir(disk)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
            point = provider.capture(project, new_point(), ignore)
        _, clone = self.boot(provider, self.task_spec(image, point))
        assert sorted(path.name for path in root(clone).iterdir()) == ["link", "run", "tool"]
        assert (root(clone) / "tool").stat().st_mode & 0o777 == 0o750
        assert str((root(clone) / "link").readlink()) == "/etc/nowhere"

    def test_the_console_tells_of_boot_and_shutdown(self, provider: Provider, image: Image) -> None:
        handle, _ = self.boot(provider, self.project_spec(image))
        provider.stop(handle)
        console = provider.console(handle)
        assert console is not None
        assert console.read_text().splitlines() == [
            "Linux version 0.0.0 (simulated)",
            "systemd[1]: Reached target multi-user.target",
            "reboot: Power down",
        ]

    def test_a_boot_error_ends_with_the_console(self, provider: Provider, image: Image) -> None:
        handle, _ = self.boot(provider, self.project_spec(image))
        provider.stop(handle)
        with pytest.raises(BootError) as caught:
            provider.endpoint(handle, timeout_s=1, progress=ignore)
        assert caught.value.details.endswith("reboot: Power down")

    def test_the_process_carries_the_machines_id(self, provider: Provider, image: Image) -> None:
        spec = self.project_spec(image)
        handle, _ = self.boot(provider, spec)
        pid = provider.inspect(handle).pid
        assert pid is not None
        assert processes.describe(pid, f"agent-swarm-{spec.id}") is not None

    def test_a_machine_whose_directory_is_removed_switches_itself_off(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        handle, _ = self.boot(provider, self.project_spec(image))
        pid = provider.inspect(handle).pid
        assert pid is not None
        record = processes.describe(pid, handle)
        assert record is not None
        shutil.rmtree(context.paths.fake / handle)
        assert processes.wait_for_end(record, timeout_s=30)

    def test_usage_grows_with_what_the_disk_holds(self, provider: Provider, image: Image) -> None:
        handle, endpoint = self.boot(provider, self.project_spec(image))
        before = provider.usage(handle)
        (root(endpoint) / "data").write_bytes(b"x" * 1_000_000)
        after = provider.usage(handle)
        assert before.disk_bytes is not None
        assert after.disk_bytes is not None
        assert after.disk_bytes - before.disk_bytes >= 1_000_000
        assert after.memory_bytes

    def test_a_damaged_tag_is_a_broken_machine_that_can_still_be_deleted(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        (context.paths.fake / handle / "owner.json").write_text("{")
        assert provider.inspect(handle).state is MachineState.BROKEN
        provider.delete(handle)
        assert provider.inspect(handle).state is MachineState.ABSENT

    def test_remains_of_an_interrupted_create_are_broken_and_listed(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        spec = self.project_spec(image)
        (context.paths.fake / f"{spec.id}.{context.installation}.partial").mkdir(parents=True)
        assert provider.inspect(spec.id).state is MachineState.BROKEN
        assert [found.handle for found in owned(provider, spec.id)] == [spec.id]

    def test_steps_are_told_with_their_end_only_when_it_was_reached(
        self, provider: Provider, image: Image
    ) -> None:
        told: list[Event] = []
        spec = self.project_spec(image)
        provider.create(spec, told.append)
        assert [type(event) for event in told] == [StepStarted, StepDone]
        assert told[0] == StepStarted(spec.host_name, "copy the disk")
