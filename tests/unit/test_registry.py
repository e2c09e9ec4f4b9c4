"""The registry: what it keeps, what it refuses, and what survives trouble."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent_swarm.errors import ConflictError, NotFoundError, RegistryError
from agent_swarm.files import file_system_type
from agent_swarm.model import (
    Environment,
    Kind,
    LocalEndpoint,
    OperationKind,
    OperationState,
    Resources,
    SshEndpoint,
    Status,
)
from agent_swarm.registry import Registry, database
from agent_swarm.registry.registry import new_environment_id


@pytest.fixture
def registry(tmp_path):
    found = Registry(tmp_path / "registry.db")
    yield found
    found.close()


def environment(name="web", *, kind=Kind.PROJECT, parent=None, baseline=None) -> Environment:
    now = datetime.now(UTC).replace(microsecond=0)
    return Environment(
        id=new_environment_id(),
        kind=kind,
        name=name,
        provider="fake",
        handle="",
        image=None,
        baseline_id=baseline,
        parent_id=parent,
        resources=Resources(2, 1024, 20),
        status=Status.CREATING,
        endpoint=None,
        created_at=now,
        updated_at=now,
        started_at=None,
    )


def test_an_environment_comes_back_as_it_was_written(registry):
    written = environment()
    registry.insert(written)
    assert registry.environment(Kind.PROJECT, "web") == written


@pytest.mark.parametrize(
    "endpoint",
    [SshEndpoint("127.0.0.1", 2222, "worker", "ssh-ed25519 AAAA"), LocalEndpoint(Path("/some/where"))],
    ids=["ssh", "local"],
)
def test_an_endpoint_comes_back_as_it_was_written(registry, endpoint):
    found = environment()
    registry.insert(found)
    registry.set_running(found.id, endpoint, status=Status.RUNNING)
    assert registry.by_id(found.id).endpoint == endpoint
    assert registry.by_id(found.id).started_at is not None


def test_a_name_is_taken_once_per_kind(registry):
    project = environment("web")
    registry.insert(project)
    with pytest.raises(ConflictError, match="already a project named 'web'"):
        registry.insert(environment("web"))
    registry.insert(environment("web", kind=Kind.TASK, parent=project.id))


def test_a_missing_name_is_answered_with_the_nearest(registry):
    registry.insert(environment("payments"))
    with pytest.raises(NotFoundError) as caught:
        registry.environment(Kind.PROJECT, "paymints")
    assert "'payments'" in caught.value.hint


def test_a_task_name_looked_up_among_projects_says_where_it_is(registry):
    registry.insert(environment("web"))
    with pytest.raises(NotFoundError) as caught:
        registry.environment(Kind.TASK, "web")
    assert "agent-swarm project" in caught.value.hint


def test_a_status_is_written_only_if_nobody_changed_it_since(registry):
    found = environment()
    registry.insert(found)
    registry.set_status(found.id, Status.DELETING)
    registry.set_status(found.id, Status.STOPPED, only_if=Status.RUNNING)
    assert registry.by_id(found.id).status is Status.DELETING


def test_generations_count_up_and_an_unfinished_one_is_not_the_newest(registry):
    project = environment()
    registry.insert(project)
    first = registry.add_baseline(project.id)
    registry.finish_baseline(first.id, "handle-1")
    second = registry.add_baseline(project.id)
    assert (first.generation, second.generation) == (1, 2)
    newest = registry.newest_baseline(project.id)
    assert newest is not None
    assert (newest.id, newest.handle) == (first.id, "handle-1")


def test_a_project_with_tasks_cannot_be_removed(registry):
    project = environment()
    registry.insert(project)
    registry.insert(environment("fix-1", kind=Kind.TASK, parent=project.id))
    with pytest.raises(sqlite3.IntegrityError), registry.transaction():
        registry.remove(project.id)
    assert registry.by_id(project.id) is not None


def test_an_environment_has_one_open_operation(registry):
    found = environment()
    registry.insert(found)
    first = registry.begin(found.id, OperationKind.STOP)
    with pytest.raises(ConflictError):
        registry.begin(found.id, OperationKind.START)
    registry.end(first, OperationState.DONE)
    registry.begin(found.id, OperationKind.START)
    assert [operation.state for operation in registry.operations(found.id)] == ["done", "open"]


def test_a_transaction_is_all_or_nothing(registry):
    def fails():
        with registry.transaction():
            registry.insert(environment())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert registry.environments() == []


def test_the_installation_id_is_made_once_for_all_threads(tmp_path):
    found = set()

    def read():
        registry = Registry(tmp_path / "registry.db")
        found.add(registry.installation())
        registry.close()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_a_registry_of_a_newer_version_is_refused_and_not_changed(tmp_path):
    path = tmp_path / "registry.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE future (x)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(RegistryError, match="newer agent-swarm"):
        Registry(path).environments()
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_not_changed(tmp_path):
    path = tmp_path / "registry.db"
    path.write_bytes(b"these are notes, not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises(RegistryError):
        Registry(path).environments()
    assert path.read_bytes() == before


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "NETWORK_FILE_SYSTEMS", {file_system_type(tmp_path)})
    with pytest.raises(RegistryError, match="network file system"):
        Registry(tmp_path / "registry.db").environments()
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from agent_swarm.errors import RegistryError
from agent_swarm.registry import Registry
from tests.unit.test_registry import environment
registry = Registry(Path(sys.argv[1]))
registry.environments()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    for number in range(2000):
        registry.insert(environment(f"p{number}"))
except RegistryError as error:
    print(number, error.hint)
"""


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    path = tmp_path / "registry.db"
    limit = 200_000
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, str(limit)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    written = int(done.stdout.split()[0])
    assert "nothing was changed" in done.stdout
    registry = Registry(path)
    assert len(registry.environments()) == written > 0
    assert registry.check() == "ok"
    registry.close()


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root ignores modes; no setpriv"
)
def test_a_read_only_registry_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "registry.db"
    registry = Registry(path)
    registry.insert(environment())
    registry.close()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    for parent in tmp_path.parents:
        if str(parent).startswith(("/tmp/pytest", os.environ.get("TMPDIR", "/tmp") + "/pytest")):
            parent.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from agent_swarm.errors import RegistryError\n"
        "from agent_swarm.registry import Registry\n"
        "from agent_swarm.model import EnvironmentId, Status\n"
        "try: Registry(Path(sys.argv[1])).set_status(EnvironmentId('x'), Status.STOPPED)\n"
        "except RegistryError as error: print(error.message, error.hint)"
    )
    as_user = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    source = str(Path(__file__).parents[2] / "src")
    paths = os.pathsep.join([source, *[entry for entry in sys.path if entry]])
    done = subprocess.run(
        [*as_user, os.path.realpath(sys.executable), "-c", code, path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    tmp_path.chmod(0o755)
    assert "writable" in done.stdout, done.stderr


def test_it_is_private(registry):
    registry.environments()
    registry.installation()
    assert registry.path.stat().st_mode & 0o077 == 0


def test_many_processes_can_write_at_once(tmp_path):
    path = tmp_path / "registry.db"
    code = (
        "import sys; from pathlib import Path; from agent_swarm.registry import Registry\n"
        "from tests.unit.test_registry import environment\n"
        "registry = Registry(Path(sys.argv[1]))\n"
        "for number in range(20): registry.insert(environment(f'{sys.argv[2]}-{number}'))"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, path, f"w{index}"], cwd=Path(__file__).parents[2])
        for index in range(4)
    ]
    assert [worker.wait() for worker in workers] == [0] * 4
    registry = Registry(path)
    assert len(registry.environments()) == 80
    registry.close()


def test_records_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        environment().name = "other"


# --- checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture
def task(registry):
    project = environment()
    registry.insert(project)
    found = environment("fix-1", kind=Kind.TASK, parent=project.id)
    registry.insert(found)
    return found


def made(registry, task, name, *, automatic=False):
    with registry.transaction():
        found = registry.add_checkpoint(task.id, name, memory=True, automatic=automatic)
        registry.finish_checkpoint(found.id, f"handle-{name}")
    return registry.checkpoint(found.id)


def test_checkpoints_descend_from_one_another(registry, task):
    first = made(registry, task, "first")
    second = made(registry, task, "second")
    assert (first.parent_id, second.parent_id) == (None, first.id)
    assert registry.by_id(task.id).checkpoint_id == second.id
    assert registry.checkpoints(task.id) == [first, second]


def test_what_descended_from_a_removed_checkpoint_descends_from_its_parent(registry, task):
    first, second, third = (made(registry, task, name) for name in ("first", "second", "third"))
    with registry.transaction():
        registry.remove_checkpoint(second.id)
    assert registry.checkpoint(third.id).parent_id == first.id
    with registry.transaction():
        registry.remove_checkpoint(third.id)
    assert registry.by_id(task.id).checkpoint_id == first.id


def test_a_checkpoint_in_the_making_is_not_what_the_task_descends_from(registry, task):
    first = made(registry, task, "first")
    unfinished = registry.add_checkpoint(task.id, "second", memory=False, automatic=False)
    assert not unfinished.ready
    assert registry.by_id(task.id).checkpoint_id == first.id


def test_a_checkpoints_name_is_taken_once_per_task(registry, task):
    made(registry, task, "before")
    with pytest.raises(ConflictError, match="already a checkpoint named 'before'"):
        registry.add_checkpoint(task.id, "before", memory=False, automatic=False)
    other = environment("fix-2", kind=Kind.TASK, parent=task.parent_id)
    registry.insert(other)
    made(registry, other, "before")


def test_a_removed_task_leaves_no_checkpoints(registry, task):
    found = made(registry, task, "before")
    with registry.transaction():
        registry.remove(task.id)
    assert registry.checkpoint(found.id) is None


def test_only_finished_automatic_checkpoints_are_old(registry, task):
    old = made(registry, task, "fork-1", automatic=True)
    made(registry, task, "mine")
    registry.add_checkpoint(task.id, "fork-2", memory=True, automatic=True)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert registry.automatic_checkpoints(before=later) == [old]
    assert registry.automatic_checkpoints(before=old.created_at) == []


def test_a_fork_comes_back_with_its_origin(registry, task):
    fork = dataclasses.replace(
        environment("try-2", kind=Kind.TASK, parent=task.parent_id), origin="fix-1@before"
    )
    registry.insert(fork)
    assert registry.environment(Kind.TASK, "try-2") == fork


def test_a_machine_that_runs_again_has_a_start_time(registry, task):
    registry.set_running(task.id, LocalEndpoint(Path("/some/where")), status=Status.RUNNING)
    started = registry.by_id(task.id).started_at
    registry.set_status(task.id, Status.CREATING)
    registry.set_status(task.id, Status.RUNNING)
    assert registry.by_id(task.id).started_at == started
    registry.set_status(task.id, Status.SUSPENDED)
    assert registry.by_id(task.id).started_at is None


def test_a_registry_of_version_1_keeps_everything(tmp_path, monkeypatch):
    path = tmp_path / "registry.db"
    every = database._migrations()
    monkeypatch.setattr(database, "_migrations", lambda: every[:1])
    with contextlib.closing(database.connect(path)) as connection:
        connection.execute(
            "INSERT INTO environments (id, kind, name, provider, cpus, memory_mib, disk_gib, status, created_at,"
            " updated_at) VALUES ('1', 'project', 'web', 'fake', 1, 256, 1, 'stopped', ?1, ?1)",
            ("2026-01-01T00:00:00.000+00:00",),
        )
        connection.execute(
            "INSERT INTO baselines VALUES ('2', '1', 1, 'h', 1, '2026-01-01T00:00:00.000+00:00')"
        )
    monkeypatch.undo()
    registry = Registry(path)
    project = registry.environment(Kind.PROJECT, "web")
    assert (project.origin, project.checkpoint_id) == ("", None)
    assert [found.memory for found in registry.baselines(project.id)] == [False]
    registry.close()
