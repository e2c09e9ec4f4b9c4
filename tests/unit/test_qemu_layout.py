from __future__ import annotations

import pytest

from agent_swarm.errors import MachineError
from agent_swarm.model import EnvironmentId, InstallationId, Kind, PointId
from agent_swarm.paths import Paths
from agent_swarm.providers.qemu import layout

ID = EnvironmentId("0123456789ab")


@pytest.mark.parametrize("kind", list(Kind))
def test_a_handle_names_its_machine(tmp_path, kind):
    files = layout.MachineFiles.of(Paths.at(tmp_path), kind, ID)
    assert layout.parse_handle(Paths.at(tmp_path), files.handle) == files


def test_a_points_handle_names_project_and_point(tmp_path):
    files = layout.MachineFiles.of(Paths.at(tmp_path), Kind.PROJECT, ID)
    handle = layout.point_handle(files, PointId("cccccccccccc"))
    assert layout.parse_point_handle(Paths.at(tmp_path), handle) == (files, "cccccccccccc")


@pytest.mark.parametrize("handle", ["", "project", "project/", "vm/0123", "task/../x", "task/a/b", "task/."])
def test_what_is_no_handle_is_refused(tmp_path, handle):
    with pytest.raises(MachineError, match="not a handle"):
        layout.parse_handle(Paths.at(tmp_path), handle)


def test_remains_tell_machine_and_installation_by_their_name(tmp_path):
    installation = InstallationId("ffffffffffff")
    remains = layout.MachineFiles.of(Paths.at(tmp_path), Kind.TASK, ID).remains(installation)
    assert layout.parse_remains(remains.name) == (ID, installation)


@pytest.mark.parametrize("name", [ID, ".x", "a.b.c", ".a.b.c", ""])
def test_other_names_are_no_remains(name):
    assert layout.parse_remains(name) is None


def test_a_missing_record_is_none(tmp_path):
    assert layout.read(tmp_path / "owner.json", layout.Owner) is None


def test_records_are_private(tmp_path):
    layout.write(tmp_path / "runtime.json", layout.Runtime(ssh_port=1, accelerator="tcg", network="passt"))
    assert (tmp_path / "runtime.json").stat().st_mode & 0o777 == 0o600
