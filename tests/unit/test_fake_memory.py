"""What the fake provider does with memory, beyond the contract: its files, and faults at every step."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest

from agent_swarm.config import Config
from agent_swarm.errors import MachineError
from agent_swarm.events import ignore
from agent_swarm.model import InstallationId, LocalEndpoint, MachineState
from agent_swarm.paths import Paths
from agent_swarm.providers.base import ProviderContext
from agent_swarm.providers.fake.faults import POINTS, Fault, FaultError, Faults
from agent_swarm.providers.fake.provider import FakeProvider
from agent_swarm.testing import child
from agent_swarm.testing.subject import new_point, owned
from tests.support.fake import FakeSubject, memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_swarm.model import Image
    from agent_swarm.providers.base import MachineSpec

HALTED_S = 30.0


def steps(method: str) -> list[str]:
    return [point for point in POINTS if point.partition(":")[0] == method]


def becomes(wanted: bool, look: Callable[[], bool]) -> bool:
    """Whether what is looked at turns to `wanted`: a signal takes its time."""
    deadline = time.monotonic() + HALTED_S
    while look() is not wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class Running:
    """A machine that remembers "kept"."""

    spec: MachineSpec
    handle: str
    endpoint: LocalEndpoint
    pid: int

    def halted(self) -> bool:
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED


class TestMemory(FakeSubject):
    @pytest.fixture
    def context(self, tmp_path: Path) -> Iterator[ProviderContext]:
        paths = Paths.at(tmp_path / "home")
        paths.prepare()
        yield ProviderContext(paths, Config(), InstallationId("a" * 12))
        shutil.rmtree(paths.run)

    @pytest.fixture
    def provider(self, context: ProviderContext) -> Iterator[FakeProvider]:
        provider = FakeProvider(context)
        yield provider
        (context.paths.fake / "faults.json").unlink(missing_ok=True)
        for machine in list(provider.list_owned()):
            provider.delete(machine.handle)

    @pytest.fixture
    def faults(self, context: ProviderContext) -> Faults:
        return Faults(context.paths.fake / "faults.json")

    @pytest.fixture
    def running(self, provider: FakeProvider, image: Image) -> Running:
        spec = self.project_spec(image)
        handle, endpoint = self.boot(provider, spec)
        self.remember(endpoint, "kept")
        return Running(spec, handle, endpoint, provider.inspect(handle).pid)

    def woken(self, provider: FakeProvider, handle: str) -> LocalEndpoint:
        provider.start(handle, ignore)
        return provider.endpoint(handle, timeout_s=1, progress=ignore)

    # Its files

    def test_memory_is_empty_after_a_stop_and_a_start(self, provider: FakeProvider, running: Running) -> None:
        provider.stop(running.handle, force=True)
        assert not memory(running.endpoint).exists()
        assert self.recall(self.woken(provider, running.handle)) == ""

    def test_memory_is_empty_after_a_power_cut(self, provider: FakeProvider, running: Running) -> None:
        psutil.Process(running.pid).kill()
        assert becomes(True, lambda: provider.inspect(running.handle).state is MachineState.STOPPED)
        assert self.recall(self.woken(provider, running.handle)) == ""

    def test_a_point_without_memory_holds_none(
        self, provider: FakeProvider, image: Image, running: Running
    ) -> None:
        point = provider.capture(running.handle, new_point(), ignore)
        _, endpoint = self.boot(provider, self.task_spec(image, point))
        assert self.recall(endpoint) == ""

    def test_each_start_writes_entropy_and_the_clock(self, provider: FakeProvider, running: Running) -> None:
        drawn = {(memory(running.endpoint) / "entropy").read_text()}
        clocks = [float((memory(running.endpoint) / "clock").read_text())]
        for _ in range(2):
            provider.suspend.suspend(running.handle, ignore)
            run = memory(self.woken(provider, running.handle))
            drawn.add((run / "entropy").read_text())
            clocks.append(float((run / "clock").read_text()))
        assert len(drawn) == 3
        assert clocks == sorted(clocks)
        assert len(set(clocks)) == 3

    def test_a_fork_draws_its_identity_anew_and_a_resumed_machine_keeps_its_own(
        self, provider: FakeProvider, image: Image, running: Running
    ) -> None:
        mine = (memory(running.endpoint) / "identity.json").read_bytes()
        point = provider.capture(running.handle, new_point(), ignore, memory=True)
        provider.suspend.suspend(running.handle, ignore)
        assert (memory(self.woken(provider, running.handle)) / "identity.json").read_bytes() == mine
        spec = self.fork_spec(image, point)
        fork = self.woken(provider, provider.create(spec, ignore))
        assert self.identity(fork).host_name == spec.host_name
        assert (memory(fork) / "identity.json").read_bytes() != mine

    def test_memory_that_became_a_link_is_not_followed(
        self, provider: FakeProvider, image: Image, running: Running, tmp_path: Path
    ) -> None:
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").touch()
        shutil.rmtree(memory(running.endpoint))
        memory(running.endpoint).symlink_to(tmp_path / "precious")
        provider.capture(running.handle, new_point(), ignore, memory=True)
        provider.suspend.suspend(running.handle, ignore)
        self.woken(provider, running.handle)
        assert not memory(running.endpoint).is_symlink()
        assert [path.name for path in (tmp_path / "precious").iterdir()] == ["file"]

    def test_what_is_written_to_the_disk_before_a_suspension_is_there_after_forget(
        self, provider: FakeProvider, running: Running
    ) -> None:
        (running.endpoint.root / "file").write_text("on the disk")
        provider.suspend.suspend(running.handle, ignore)
        provider.suspend.forget(running.handle)
        endpoint = self.woken(provider, running.handle)
        assert (endpoint.root / "file").read_text() == "on the disk"
        assert self.recall(endpoint) == ""

    def test_damaged_memory_is_an_obstacle_and_a_start_that_fails_and_stays_suspended(
        self, context: ProviderContext, provider: FakeProvider, running: Running
    ) -> None:
        provider.suspend.suspend(running.handle, ignore)
        (context.paths.fake / running.handle / "memory" / "saved.json").write_text("{")
        assert "damaged" in provider.suspend.obstacle(running.handle)
        with pytest.raises(MachineError):
            provider.start(running.handle, ignore)
        assert provider.inspect(running.handle).state is MachineState.SUSPENDED

    def test_a_machine_that_went_on_and_died_is_stopped_not_suspended(
        self, provider: FakeProvider, running: Running
    ) -> None:
        provider.suspend.suspend(running.handle, ignore)
        self.woken(provider, running.handle)
        psutil.Process(provider.inspect(running.handle).pid).kill()
        assert becomes(True, lambda: provider.inspect(running.handle).state is not MachineState.RUNNING)
        assert provider.inspect(running.handle).state is MachineState.STOPPED

    # Faults

    @pytest.mark.parametrize("error", ["machine", "disk-full"])
    @pytest.mark.parametrize("point", steps("start"))
    def test_a_start_from_memory_that_fails_leaves_it_suspended(
        self, provider: FakeProvider, faults: Faults, running: Running, point: str, error: FaultError
    ) -> None:
        provider.suspend.suspend(running.handle, ignore)
        faults.arrange({point: Fault(error=error, times=1)})
        with pytest.raises(MachineError):
            provider.start(running.handle, ignore)
        assert provider.inspect(running.handle).state is MachineState.SUSPENDED
        assert self.recall(self.woken(provider, running.handle)) == "kept"

    @pytest.mark.parametrize("error", ["machine", "disk-full"])
    @pytest.mark.parametrize("point", steps("suspend"))
    def test_a_suspension_that_fails_leaves_it_running(
        self, provider: FakeProvider, faults: Faults, running: Running, point: str, error: FaultError
    ) -> None:
        faults.arrange({point: Fault(error=error)})
        with pytest.raises(MachineError):
            provider.suspend.suspend(running.handle, ignore)
        seen = provider.inspect(running.handle)
        assert (seen.state, seen.pid) == (MachineState.RUNNING, running.pid)
        assert becomes(False, running.halted)
        assert self.recall(running.endpoint) == "kept"

    @pytest.mark.parametrize("error", ["machine", "disk-full"])
    @pytest.mark.parametrize("point", steps("capture"))
    def test_a_capture_with_memory_that_fails_leaves_it_running(
        self, provider: FakeProvider, faults: Faults, running: Running, point: str, error: FaultError
    ) -> None:
        faults.arrange({point: Fault(error=error)})
        with pytest.raises(MachineError):
            provider.capture(running.handle, new_point(), ignore, memory=True)
        assert becomes(False, running.halted)
        assert owned(provider, running.spec.id)[0].points == ()
        assert self.recall(running.endpoint) == "kept"

    @pytest.mark.parametrize("error", ["machine", "disk-full"])
    @pytest.mark.parametrize("point", steps("restore"))
    def test_a_restore_that_fails_leaves_it_stopped_or_as_it_was(
        self, provider: FakeProvider, faults: Faults, running: Running, point: str, error: FaultError
    ) -> None:
        saved = provider.capture(running.handle, new_point(), ignore, memory=True)
        before = provider.inspect(running.handle)
        faults.arrange({point: Fault(error=error, times=1)})
        with pytest.raises(MachineError):
            provider.snapshots.restore(running.handle, saved, ignore)
        seen = provider.inspect(running.handle)
        assert seen.state is MachineState.STOPPED if point == "restore:switched" else seen == before
        provider.snapshots.restore(running.handle, saved, ignore)
        assert self.recall(self.woken(provider, running.handle)) == "kept"

    @pytest.mark.parametrize(
        ("method", "point"),
        [("capture", point) for point in ("capture:paused", "capture:copied", "capture:renamed")]
        + [("suspend.suspend", point) for point in ("suspend:paused", "suspend:saved")],
    )
    def test_a_machine_that_a_killed_call_halted_goes_on_when_it_is_settled(
        self,
        context: ProviderContext,
        provider: FakeProvider,
        faults: Faults,
        running: Running,
        method: str,
        point: str,
    ) -> None:
        faults.arrange({point: Fault(error="killed", times=1)})
        arguments = (new_point(), ignore) if method == "capture" else (ignore,)
        named = {"memory": True} if method == "capture" else {}
        assert child.killed(self.call(context, method, running.handle, *arguments, **named), before=1_000_000)
        assert becomes(True, running.halted)
        provider.settle(running.handle)
        assert becomes(False, running.halted)
        assert provider.inspect(running.handle).pid == running.pid

    def test_a_machine_that_a_killed_call_halted_can_be_stopped(
        self, context: ProviderContext, provider: FakeProvider, faults: Faults, running: Running
    ) -> None:
        faults.arrange({"suspend:paused": Fault(error="killed", times=1)})
        assert child.killed(self.call(context, "suspend.suspend", running.handle, ignore), before=1_000_000)
        provider.stop(running.handle)
        assert provider.inspect(running.handle).state is MachineState.STOPPED
        console = provider.console(running.handle)
        assert console is not None
        assert console.read_text().endswith("reboot: Power down\n")  # it was asked, not cut off

    def test_settle_killed_at_any_instant_of_a_restore_is_completed_by_the_next(
        self, context: ProviderContext, provider: FakeProvider, faults: Faults, running: Running
    ) -> None:
        saved = provider.capture(running.handle, new_point(), ignore, memory=True)
        restore = self.call(context, "snapshots.restore", running.handle, saved, ignore)
        settle = self.call(context, "settle", running.handle)
        for instant in range(1, 200):
            self.remember(self.woken(provider, running.handle), "lost")
            faults.arrange({"restore:prepared": Fault(error="killed", times=1)})
            assert child.killed(restore, before=1_000_000)
            killed = child.killed(settle, before=instant)
            provider.settle(running.handle)
            assert provider.inspect(running.handle).state is MachineState.SUSPENDED, instant
            assert self.recall(self.woken(provider, running.handle)) == "kept", instant
            if not killed:
                break
        assert instant > 5
        assert not killed

    def test_an_arranged_obstacle_is_that_of_both_facets(
        self, provider: FakeProvider, faults: Faults, running: Running
    ) -> None:
        point = provider.capture(running.handle, new_point(), ignore, memory=True)
        faults.arrange({"obstacle": Fault(error="machine")})
        assert "faults.json" in provider.live_fork.obstacle(point, self.resources)
        assert "faults.json" in provider.suspend.obstacle(running.handle)
