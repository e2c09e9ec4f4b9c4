"""Nothing is undocumented, and nothing is documented that does not exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agent_swarm import config
from agent_swarm.cli import reference
from agent_swarm.cli.table import COMMANDS, command, every_command

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "run: python -m agent_swarm.cli.reference docs"

LEAVES = [pytest.param(words, entry, id=" ".join(words)) for words, entry in every_command()]


@pytest.mark.parametrize("name", ["commands.md", "config.md", "config.schema.json"])
def test_generated_pages_are_current(name):
    assert (DOCS / name).read_bytes() == reference.pages()[name], AGAIN


@pytest.mark.parametrize(("words", "entry"), LEAVES)
def test_the_commands_page_has_every_option_of_a_command_and_an_example(words, entry):
    page = (DOCS / "commands.md").read_text()
    section = page.split(f"### agent-swarm {' '.join(words)}\n", 1)[1].split("\n##", 1)[0]
    found = command(words[-1], entry)
    for parameter in found.params:
        for option in parameter.opts:
            if option.startswith("-"):
                assert re.search(rf"^\| `[^|]*{option}\b", section, re.MULTILINE)
    documented = re.findall(r"^\| `([^`]*)`", section, re.MULTILINE)
    assert len(documented) == sum(parameter.param_type_name == "option" for parameter in found.params)
    assert f"\n    {found.example.splitlines()[0]}\n" in section


def test_the_commands_page_has_no_command_that_does_not_exist():
    page = (DOCS / "commands.md").read_text()
    documented = re.findall(r"^### agent-swarm (.*)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(" ".join(words) for words, _ in every_command())


@pytest.mark.parametrize(("words", "entry"), LEAVES)
def test_every_command_has_a_full_help_text_and_help_for_each_option(words, entry):
    found = command(words[-1], entry)
    assert found.help
    assert entry.help.endswith(".")
    for parameter in found.params:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_the_settings_page_has_every_setting_and_no_other():
    page = (DOCS / "config.md").read_text()
    rows = re.findall(r"^\| `([a-z_.0-9]+)` \| .* \| (.*) \|$", page, re.MULTILINE)
    assert rows == list(config.settings())


def test_every_setting_says_what_it_does():
    for key, text in config.settings():
        assert text, key


def test_the_json_page_has_every_command_with_json_and_no_other():
    page = (DOCS / "json.md").read_text()
    documented = re.findall(r"^## agent-swarm (.*)$", page, re.MULTILINE)
    with_json = [
        " ".join(words)
        for words, entry in every_command(COMMANDS)
        if any("--json" in parameter.opts for parameter in command(words[-1], entry).params)
    ]
    assert sorted(documented) == sorted(with_json)


def test_the_examples_of_the_json_page_are_documents_of_version_1():
    page = (DOCS / "json.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert len(examples) == len(re.findall(r"^## ", page, re.MULTILINE))
    for example in examples:
        assert json.loads(example)["version"] == 1
