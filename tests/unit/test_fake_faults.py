from __future__ import annotations

import concurrent.futures
import operator
import shutil
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config
from agent_swarm.errors import (
    BootError,
    ConfigError,
    MachineError,
    ProviderUnavailableError,
    ResourceLimitError,
    SwarmError,
)
from agent_swarm.events import ignore
from agent_swarm.model import InstallationId, MachineState
from agent_swarm.paths import Paths
from agent_swarm.providers.base import ProviderContext
from agent_swarm.providers.fake import create_provider
from agent_swarm.providers.fake.faults import POINTS, Fault, FaultError, Faults
from agent_swarm.providers.fake.provider import FakeProvider
from agent_swarm.testing import child
from agent_swarm.testing.subject import ProviderSubject, new_point, owned, traces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_swarm.model import Image

QUIET = ("probe", "obstacle", "inspect", "usage")
"""What never raises."""


class Subject(ProviderSubject):
    create_provider = staticmethod(create_provider)


class TestFaults(Subject):
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

    def arrangement(
        self, context: ProviderContext, provider: FakeProvider, image: Image, point: str
    ) -> child.Call:
        """A call that comes to a point, on a machine that is in the state for it to do all its steps."""
        method = point.partition(":")[0]
        spec = self.project_spec(image)
        if method == "create":
            return self.call(context, "create", spec, ignore)
        handle = provider.create(spec, ignore)
        if method in {"stop", "delete", "endpoint", "suspend", "capture"}:
            provider.start(handle, ignore)
        match method:
            case "discard" | "restore":
                captured = new_point()
                point_handle = provider.capture(handle, captured, ignore)
                if method == "discard":
                    return self.call(context, "discard", handle, captured)
                return self.call(context, "snapshots.restore", handle, point_handle, ignore)
            case "capture":
                return self.call(context, "capture", handle, new_point(), ignore, memory=True)
            case "suspend":
                return self.call(context, "suspend.suspend", handle, ignore)
            case "forget":
                return self.call(context, "suspend.forget", handle)
            case "start":
                return self.call(context, "start", handle, ignore)
            case "endpoint":
                return self.call(context, "endpoint", handle, timeout_s=1.0, progress=ignore)
        return self.call(context, method, handle)

    def reach(self, provider: FakeProvider, call: child.Call) -> None:
        operator.attrgetter(call.method)(provider)(*call.arguments, **call.named)

    @pytest.mark.parametrize("point", [point for point in POINTS if point not in QUIET])
    def test_every_point_raises_what_is_arranged_and_works_when_tried_again(
        self, context: ProviderContext, provider: FakeProvider, faults: Faults, image: Image, point: str
    ) -> None:
        call = self.arrangement(context, provider, image, point)
        faults.arrange({point: Fault(error="machine", times=1)})
        with pytest.raises(MachineError, match=f"{point} failed because faults.json says so"):
            self.reach(provider, call)
        self.reach(provider, call)

    @pytest.mark.parametrize("point", [point for point in POINTS if point not in {*QUIET, "endpoint"}])
    def test_every_point_can_kill_the_process_and_the_next_call_completes_it(
        self, context: ProviderContext, provider: FakeProvider, faults: Faults, image: Image, point: str
    ) -> None:
        call = self.arrangement(context, provider, image, point)
        handle = None if call.method == "create" else str(call.arguments[0])
        faults.arrange({point: Fault(error="killed", times=1)})
        assert child.killed(call, before=1_000_000)
        if handle is not None:
            provider.settle(handle)
        if handle is None or provider.inspect(handle).state is not MachineState.SUSPENDED:
            self.reach(provider, call)

    @pytest.mark.parametrize("point", ["create", "create:tagged", "create:copied", "create:renamed"])
    def test_a_create_that_fails_leaves_nothing(
        self, context: ProviderContext, provider: FakeProvider, faults: Faults, image: Image, point: str
    ) -> None:
        faults.arrange({point: Fault(error="disk-full")})
        spec = self.project_spec(image)
        with pytest.raises(MachineError) as caught:
            provider.create(spec, ignore)
        assert "No space left on device" in caught.value.details
        assert owned(provider, spec.id) == []
        assert traces(context, spec.id) == []

    @pytest.mark.parametrize("point", ["start:spawned", "start:recorded", "start:running"])
    def test_a_start_that_fails_leaves_nothing_running(
        self, provider: FakeProvider, faults: Faults, image: Image, point: str
    ) -> None:
        faults.arrange({point: Fault(error="disk-full")})
        handle = provider.create(self.project_spec(image), ignore)
        with pytest.raises(MachineError):
            provider.start(handle, ignore)
        assert provider.inspect(handle).state is MachineState.STOPPED

    @pytest.mark.parametrize("point", ["capture:copied", "capture:renamed"])
    def test_a_capture_that_fails_leaves_the_machine_as_it_was(
        self, provider: FakeProvider, faults: Faults, image: Image, point: str
    ) -> None:
        faults.arrange({point: Fault(error="disk-full")})
        spec = self.project_spec(image)
        handle = provider.create(spec, ignore)
        with pytest.raises(MachineError):
            provider.capture(handle, new_point(), ignore)
        assert [tuple(found.points) for found in owned(provider, spec.id)] == [()]
        assert provider.inspect(handle).state is MachineState.STOPPED

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            ("machine", MachineError),
            ("boot", BootError),
            ("unavailable", ProviderUnavailableError),
            ("limit", ResourceLimitError),
            ("disk-full", MachineError),
        ],
    )
    def test_each_kind_of_error_is_its_type(
        self,
        provider: FakeProvider,
        faults: Faults,
        image: Image,
        error: FaultError,
        expected: type[SwarmError],
    ) -> None:
        faults.arrange({"create": Fault(error=error)})
        with pytest.raises(SwarmError) as caught:
            provider.create(self.project_spec(image), ignore)
        assert type(caught.value) is expected

    def test_inspect_and_usage_turn_an_error_into_broken(
        self, provider: FakeProvider, faults: Faults, image: Image
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        faults.arrange({"inspect": Fault(error="machine", times=1), "usage": Fault(error="disk-full")})
        assert provider.inspect(handle).state is MachineState.BROKEN
        assert provider.inspect(handle).state is MachineState.STOPPED
        assert provider.usage(handle).state is MachineState.BROKEN

    def test_probe_turns_an_error_into_not_usable(self, provider: FakeProvider, faults: Faults) -> None:
        faults.arrange({"probe": Fault(error="unavailable")})
        readiness = provider.probe()
        assert not readiness.usable
        assert list(readiness.missing) == ["probe failed because faults.json says so"]

    def test_a_delay_waits_for_as_long_and_then_goes_on(
        self, context: ProviderContext, faults: Faults, image: Image
    ) -> None:
        waited: list[float] = []
        provider = FakeProvider(context, sleep=waited.append)
        faults.arrange({"create": Fault(delay_s=2.5)})
        handle = provider.create(self.project_spec(image), ignore)
        assert waited == [2.5]
        assert provider.inspect(handle).state is MachineState.STOPPED

    def test_a_fault_without_times_stays(self, faults: Faults) -> None:
        faults.arrange({"stop": Fault(error="machine")})
        for _ in range(3):
            with pytest.raises(MachineError):
                faults.meet("stop")

    def test_exactly_as_many_as_times_meet_a_fault(self, faults: Faults) -> None:
        faults.arrange({"stop": Fault(error="machine", times=5)})

        def failed(_: int) -> bool:
            try:
                faults.meet("stop")
            except MachineError:
                return True
            return False

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(failed, range(20))) == 5

    def test_an_unknown_point_is_refused_with_the_known_ones(self, faults: Faults) -> None:
        with pytest.raises(ConfigError, match="create:nowhere") as caught:
            faults.arrange({"create:nowhere": Fault(error="machine")})
        assert "create:tagged" in caught.value.hint

    def test_an_invalid_file_is_a_config_error(self, context: ProviderContext, faults: Faults) -> None:
        context.paths.fake.mkdir()
        (context.paths.fake / "faults.json").write_text('{"start": {"error": "nonsense"}}')
        with pytest.raises(ConfigError) as caught:
            faults.meet("stop")
        assert "nonsense" in caught.value.details
