from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_swarm import config
from agent_swarm.config import Config
from agent_swarm.errors import ConfigError
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.at(tmp_path)


def parse(text: str) -> Config:
    return config.parse(text.encode(), origin="config.json")


@pytest.mark.parametrize("content", [None, b"", b" \n", b"{}"])
def test_a_file_that_says_nothing_means_the_defaults(paths: Paths, content: bytes | None) -> None:
    if content is not None:
        paths.config.write_bytes(content)
    assert config.load(paths) == Config()


def test_the_defaults_of_a_machine_are_2_cpus_4_gib_20_gib() -> None:
    resources = Config().resources
    assert (resources.cpus, resources.memory_mib, resources.disk_gib) == (2, 4096, 20)


def test_a_file_may_hold_only_what_differs(paths: Paths) -> None:
    paths.config.write_text('{"resources": {"cpus": 8}}')
    loaded = config.load(paths)
    assert (loaded.resources.cpus, loaded.resources.memory_mib) == (8, 4096)


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        ('{"resuorces": {}}', "resuorces", "Did you mean 'resources.cpus'?"),
        ('{"resources": {"cpu": 1}}', "resources", "Did you mean 'resources.cpus'?"),
        ('{"ssh": {"forward_agnet": true}}', "forward_agnet", "Did you mean 'ssh.forward_agent'?"),
        ('{"memory_mib": 512}', "memory_mib", "Did you mean 'resources.memory_mib'?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(text: str, named: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        parse(text)
    assert "unknown key" in caught.value.message
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"resources": {"cpus": "two"}}', "resources.cpus"),
        ('{"resources": {"cpus": 0}}', "resources.cpus"),
        ('{"resources": {"cpus": 1.5}}', "resources.cpus"),
        ('{"qemu": {"accelerator": "xen"}}', "qemu.accelerator"),
        ('{"images": {"ubuntu_mirror": "ftp://x"}}', "images.ubuntu_mirror"),
        ('{"timeouts": {"boot_s": null}}', "timeouts.boot_s"),
        ('{"resources": []}', "resources"),
    ],
)
def test_an_ill_typed_value_is_named_by_its_path(text: str, path: str) -> None:
    with pytest.raises(ConfigError, match=f"`{path}`"):
        parse(text)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"provider": "a",}', "\x00"])
def test_what_is_not_a_json_object_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


@given(st.binary(max_size=60))
def test_no_content_raises_anything_but_a_config_error(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        config.parse(content, origin="config.json")


def test_a_config_that_cannot_be_read_is_a_config_error(paths: Paths) -> None:
    paths.config.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(paths)


def test_every_setting_has_a_description_and_a_default_that_can_be_got() -> None:
    found = dict(config.settings())
    assert {"provider", "resources.cpus", "qemu.network"} <= set(found)
    for key, description in found.items():
        assert description.endswith("."), key
        config.get(Config(), key)


def test_get_of_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there is no setting 'resources\.cpu'") as caught:
        config.get(Config(), "resources.cpu")
    assert caught.value.hint == "Did you mean 'resources.cpus'?"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("resources.cpus", "8", 8),
        ("ssh.forward_agent", "false", False),
        ("timeouts.boot_s", "12.5", 12.5),
        ("editor", "codium", "codium"),
        ("provider", "8", "8"),
        ("qemu.accelerator", "tcg", "tcg"),
    ],
)
def test_set_writes_a_value_that_is_then_loaded(paths: Paths, key: str, text: str, value: object) -> None:
    config.set_value(paths, key, text)
    assert config.get(config.load(paths), key) == value


def test_set_keeps_the_other_settings_and_makes_the_file_private(paths: Paths) -> None:
    paths.config.write_text('{"editor": "vim", "resources": {"disk_gib": 40}}')
    config.set_value(paths, "resources.cpus", "8")
    document = json.loads(paths.config.read_text())
    assert document == {"editor": "vim", "resources": {"disk_gib": 40, "cpus": 8}}
    assert paths.config.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("resources.cpus", "many"),
        ("resources.cpus", "0"),
        ("timeouts.boot_s", "NaN"),
        ("qemu.accelerator", "xen"),
        ("resources", "{}"),
        ("nothing", "1"),
    ],
)
def test_set_of_what_is_not_valid_leaves_the_file_as_it_was(paths: Paths, key: str, text: str) -> None:
    paths.config.write_text('{"editor": "vim"}')
    with pytest.raises(ConfigError):
        config.set_value(paths, key, text)
    assert paths.config.read_text() == '{"editor": "vim"}'


def test_set_in_a_missing_directory_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        config.set_value(Paths.at(tmp_path / "missing"), "editor", "vim")


def test_the_schema_describes_every_setting() -> None:
    text = config.json_schema().decode()
    for key, description in config.settings():
        assert json.dumps(key.rpartition(".")[2]) in text
        assert json.dumps(description) in text
