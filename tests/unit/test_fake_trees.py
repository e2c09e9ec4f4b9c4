"""Random trees of machines, points and forks on the fake provider, against a model of what each must hold."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from agent_swarm.config import Config
from agent_swarm.events import ignore
from agent_swarm.files import remove_tree
from agent_swarm.model import InstallationId, LocalEndpoint, MachineState
from agent_swarm.paths import Paths
from agent_swarm.providers.base import ProviderContext
from agent_swarm.providers.fake.provider import FakeProvider
from agent_swarm.testing.subject import bare_image, new_point, traces
from tests.support.fake import FakeSubject

if TYPE_CHECKING:
    from agent_swarm.model import Image, PointId

TEXTS = st.sampled_from(["red", "green", "blue", "white"])


@dataclass(frozen=True)
class Holding:
    """What a machine or a point must hold. `memory` is None where it has none."""

    disk: str = ""
    memory: str | None = None
    state: MachineState = MachineState.STOPPED


@dataclass(frozen=True)
class PointName:
    machine: str
    id: PointId
    handle: str


class Trees(RuleBasedStateMachine):
    """Points stay in their bundle when their machines are deleted: what is done with them then does nothing."""

    machines = Bundle("machines")
    points = Bundle("points")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="trees-"))
        paths = Paths.at(self.directory)
        paths.prepare()
        self.context = ProviderContext(paths, Config(), InstallationId(secrets.token_hex(6)))
        self.provider = FakeProvider(self.context)
        self.image: Image = bare_image()
        self.expected: dict[str, Holding] = {}
        self.captured: dict[PointName, Holding] = {}
        self.made: list[str] = []

    # Machines

    @initialize(target=machines)
    def first(self) -> str:
        return self.project()

    @rule(target=machines)
    def project(self) -> str:
        machine = self.create(FakeSubject.project_spec(self.image), Holding())
        self.start(machine)
        return machine

    def create(self, spec, holding: Holding) -> str:
        handle = self.provider.create(spec, ignore)
        self.expected[handle] = holding
        self.made.append(handle)
        return handle

    @rule(machine=machines, text=TEXTS)
    def write(self, machine: str, text: str) -> None:
        holding = self.expected.get(machine)
        if holding is None:
            return
        if holding.state is not MachineState.SUSPENDED:
            FakeSubject.write_disk(self.context, machine, text)
            self.expected[machine] = holding = replace(holding, disk=text)
        if holding.state is MachineState.RUNNING:
            FakeSubject.remember(self.endpoint(machine), text)
            self.expected[machine] = replace(holding, memory=text)

    @rule(machine=machines)
    def start(self, machine: str) -> None:
        holding = self.expected.get(machine)
        if holding is not None:
            self.provider.start(machine, ignore)
            self.expected[machine] = replace(holding, memory=holding.memory or "", state=MachineState.RUNNING)

    @rule(machine=machines)
    def stop(self, machine: str) -> None:
        self.provider.stop(machine, force=True)
        holding = self.expected.get(machine)
        if holding is not None and holding.state is MachineState.RUNNING:
            self.expected[machine] = Holding(holding.disk)

    @rule(machine=machines)
    def suspend(self, machine: str) -> None:
        holding = self.expected.get(machine)
        if holding is not None and holding.state is MachineState.RUNNING:
            self.provider.suspend.suspend(machine, ignore)
            self.expected[machine] = replace(holding, state=MachineState.SUSPENDED)

    @rule(machine=machines)
    def forget(self, machine: str) -> None:
        self.provider.suspend.forget(machine)
        holding = self.expected.get(machine)
        if holding is not None and holding.state is MachineState.SUSPENDED:
            self.expected[machine] = Holding(holding.disk)

    @rule(machine=consumes(machines))
    def delete(self, machine: str) -> None:
        self.provider.delete(machine)
        self.expected.pop(machine, None)
        for point in [point for point in self.captured if point.machine == machine]:
            del self.captured[point]

    # Points

    @rule(target=points, machine=machines, memory=st.booleans())
    def capture(self, machine: str, memory: bool) -> PointName | None:
        holding = self.expected.get(machine)
        if holding is None:
            return None
        memory = memory and holding.state is MachineState.RUNNING
        point = new_point()
        handle = self.provider.capture(machine, point, ignore, memory=memory)
        name = PointName(machine, point, handle)
        state = MachineState.SUSPENDED if memory else MachineState.STOPPED
        self.captured[name] = Holding(holding.disk, holding.memory if memory else None, state)
        return name

    @rule(point=points)
    def restore(self, point: PointName | None) -> None:
        if point in self.captured:
            self.provider.snapshots.restore(point.machine, point.handle, ignore)
            self.expected[point.machine] = self.captured[point]

    @rule(target=machines, point=points, live=st.booleans(), started=st.booleans())
    def fork(self, point: PointName | None, live: bool, started: bool) -> str:
        holding = self.captured.get(point)
        if holding is None:
            return self.project()
        if live and holding.memory is not None:
            machine = self.create(FakeSubject.fork_spec(self.image, point.handle), holding)
        else:
            machine = self.create(FakeSubject.task_spec(self.image, point.handle), Holding(holding.disk))
        if started:
            self.start(machine)
        return machine

    @rule(point=consumes(points))
    def discard(self, point: PointName | None) -> None:
        if point is not None:
            self.provider.discard(point.machine, point.id)
            self.captured.pop(point, None)

    # What must hold

    def endpoint(self, machine: str) -> LocalEndpoint:
        return self.provider.endpoint(machine, timeout_s=1, progress=ignore)

    @invariant()
    def every_machine_is_what_the_model_says(self) -> None:
        listed = {found.handle: set(found.points) for found in self.provider.list_owned()}
        assert set(listed) == set(self.expected)
        for machine, holding in self.expected.items():
            assert self.provider.inspect(machine).state is holding.state
            assert FakeSubject.read_disk(self.context, machine) == holding.disk
            if holding.state is MachineState.RUNNING:
                assert FakeSubject.recall(self.endpoint(machine)) == holding.memory
            assert listed[machine] == {point.id for point in self.captured if point.machine == machine}

    def teardown(self) -> None:
        """Every saved memory and every point still holds what it held, and nothing stays."""
        try:
            for point, holding in self.captured.items():
                spec = FakeSubject.fork_spec if holding.memory is not None else FakeSubject.task_spec
                self.create(spec(self.image, point.handle), holding)
            for machine, holding in self.expected.items():
                self.provider.start(machine, ignore)
                assert FakeSubject.recall(self.endpoint(machine)) == (holding.memory or "")
                assert FakeSubject.read_disk(self.context, machine) == holding.disk
        finally:
            for machine in self.made:
                self.provider.delete(machine)
            left = [trace for machine in self.made for trace in traces(self.context, machine)]
            remove_tree(self.context.paths.run)
            remove_tree(self.directory)
        assert left == []


TestTrees = Trees.TestCase
TestTrees.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
