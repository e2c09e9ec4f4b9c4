from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config
from agent_swarm.errors import ProviderUnavailableError, UsageError
from agent_swarm.model import InstallationId
from agent_swarm.paths import Paths
from agent_swarm.providers import discovery
from agent_swarm.providers.base import ProviderContext

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def context(tmp_path: Path) -> ProviderContext:
    return ProviderContext(Paths.at(tmp_path / "home"), Config(), InstallationId("a" * 12))


def install(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    entry: str,
    module: str = "",
    name: str = "other-swarm",
) -> str:
    """Another package with a provider, as pip would have installed it; the name of its module."""
    module_name = f"{tmp_path.name}_{name}".replace("-", "_")
    site = tmp_path / "site"
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[agent_swarm.providers]\n{entry.format(module=module_name)}\n")
    (site / f"{module_name}.py").write_text(textwrap.dedent(module))
    monkeypatch.syspath_prepend(site)
    return module_name


def test_our_own_providers_are_listed() -> None:
    assert {"fake", "qemu"} <= set(discovery.names())


def test_names_are_sorted_and_include_other_packages_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(
        tmp_path, monkeypatch, entry="cloud = {module}:create_provider", module="raise SystemExit(9)"
    )
    names = discovery.names()
    assert "cloud" in names
    assert names == sorted(names)
    assert module not in sys.modules


def test_load_makes_the_named_provider(context: ProviderContext) -> None:
    assert discovery.load("fake", context).name == "fake"


def test_load_imports_nothing_but_the_named_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext
) -> None:
    module = install(tmp_path, monkeypatch, entry="cloud = {module}:create_provider", module="1 / 0")
    discovery.load("fake", context)
    assert module not in sys.modules


def test_another_package_cannot_take_the_name_of_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext
) -> None:
    install(tmp_path, monkeypatch, entry="fake = {module}:create_provider", module="1 / 0")
    assert discovery.load("fake", context).name == "fake"


def test_an_unknown_name_is_a_usage_error_with_the_nearest(context: ProviderContext) -> None:
    with pytest.raises(UsageError, match="there is no provider 'qmeu'") as caught:
        discovery.load("qmeu", context)
    assert caught.value.hint == "Did you mean 'qemu'?"


def test_a_name_like_no_other_is_answered_with_all_of_them(context: ProviderContext) -> None:
    with pytest.raises(UsageError) as caught:
        discovery.load("zzz", context)
    assert "fake, qemu" in caught.value.hint


@pytest.mark.parametrize("where", ["module", "function"])
def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext, where: str
) -> None:
    load = "import no_such_module"
    module = load if where == "module" else f"def create_provider(context):\n    {load}"
    install(tmp_path, monkeypatch, entry="cloud = {module}:create_provider [big]", module=module)
    with pytest.raises(ProviderUnavailableError, match="needs the Python module no_such_module") as caught:
        discovery.load("cloud", context)
    assert caught.value.hint == "Run `pip install 'other-swarm[big]'`."


def test_a_missing_module_without_an_extra_is_a_damaged_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext
) -> None:
    install(tmp_path, monkeypatch, entry="cloud = {module}:create_provider", module="import no_such_module")
    with pytest.raises(ProviderUnavailableError) as caught:
        discovery.load("cloud", context)
    assert caught.value.hint == "Run `pip install --force-reinstall other-swarm`."


def test_the_setting_names_the_provider(context: ProviderContext) -> None:
    assert discovery.choose(Config(provider="fake"), context, environ={}).name == "fake"


def test_the_environment_variable_overrides_the_setting(context: ProviderContext) -> None:
    environ = {"AGENT_SWARM_PROVIDER": "fake"}
    assert discovery.choose(Config(provider="qemu"), context, environ=environ).name == "fake"


def test_what_was_requested_overrides_the_environment_variable(context: ProviderContext) -> None:
    environ = {"AGENT_SWARM_PROVIDER": "qemu"}
    chosen = discovery.choose(Config(), context, requested="fake", environ=environ)
    assert chosen.name == "fake"


def test_auto_never_takes_the_fake() -> None:
    assert "fake" not in discovery.AUTO_ORDER


UNUSABLE = """
    from agent_swarm.providers.base import Readiness

    class Cloud:
        def probe(self):
            return Readiness(
                usable=False, summary="not here", missing=["cloudctl"], install_command="apt install cloudctl"
            )

    def create_provider(context):
        return Cloud()
"""


def test_auto_takes_the_first_that_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext
) -> None:
    install(tmp_path, monkeypatch, entry="cloud = {module}:create_provider", module=UNUSABLE)
    assert discovery.choose(Config(), context, environ={}, order=("cloud", "fake")).name == "fake"


def test_auto_without_a_usable_one_says_what_each_lacks_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext
) -> None:
    install(tmp_path, monkeypatch, entry="cloud = {module}:create_provider", module=UNUSABLE)
    install(
        tmp_path,
        monkeypatch,
        entry="metal = {module}:create_provider [metal]",
        module="import no_such_module",
        name="metal-swarm",
    )
    with pytest.raises(ProviderUnavailableError, match="no provider is usable") as caught:
        discovery.choose(Config(), context, environ={}, order=("cloud", "metal"))
    assert "cloud: cloudctl" in caught.value.details
    assert "metal: the provider metal needs" in caught.value.details
    assert "Run `apt install cloudctl`." in caught.value.hint
    assert "Run `pip install 'metal-swarm[metal]'`." in caught.value.hint


def test_a_named_provider_that_is_not_usable_is_refused_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ProviderContext
) -> None:
    install(tmp_path, monkeypatch, entry="cloud = {module}:create_provider", module=UNUSABLE)
    with pytest.raises(ProviderUnavailableError, match="the provider cloud is not usable") as caught:
        discovery.choose(Config(provider="cloud"), context, environ={})
    assert (caught.value.details, caught.value.hint) == ("cloud: cloudctl", "Run `apt install cloudctl`.")
