"""The accelerator's choice; the trial guest is a script that says what a QEMU's serial port would."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_swarm.config import Config, QemuSettings
from agent_swarm.errors import UsageError
from agent_swarm.events import Notice, ignore
from agent_swarm.model import ImageDigest
from agent_swarm.paths import Paths
from agent_swarm.providers.qemu import accelerator
from agent_swarm.providers.qemu.accelerator import Subject, Verdict
from agent_swarm.providers.qemu.definition import native_architecture
from agent_swarm.providers.qemu.host import Qemu

NO_ROOT = "[    2.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


@pytest.fixture
def paths(tmp_path):
    found = Paths.at(tmp_path / "home")
    found.prepare()
    return found


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A /dev/kvm that can be opened."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(accelerator, "KVM_DEVICE", path)
    monkeypatch.setattr(accelerator.sys, "platform", "linux")
    return path


def qemu(folder: Path, script: str) -> Qemu:
    """A QEMU that counts its starts and then does what the script says."""
    program = folder / "qemu"
    program.write_text(f"#!/bin/sh\necho >> {folder}/starts\n{script}\n")
    program.chmod(0o755)
    return Qemu(binary=str(program), version="7.2.22", sandbox=False)


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines()) if (folder / "starts").exists() else 0


def subject(*, kernel: Path | None = Path("/i/kernel"), architecture: str | None = None) -> Subject:
    return Subject(
        image=ImageDigest("a" * 64),
        architecture=architecture or native_architecture(),
        machine="pc-q35-7.2",
        kernel=kernel,
        disk=Path("/i/disk,1.qcow2"),
    )


def choose(paths, found, *, config=None, environ=None, progress=ignore, of=None):
    return accelerator.choose(paths, config or Config(), environ or {}, found, of or subject(), progress)


def test_a_kernel_that_misses_its_root_disk_has_booted(tmp_path):
    verdict = accelerator.try_out("kvm", qemu(tmp_path, f"echo '{NO_ROOT}'"), subject())
    assert verdict == Verdict(works=True)


def test_a_disk_whose_first_program_runs_has_booted(tmp_path):
    found = qemu(tmp_path, "echo '[    3.1] Run /init as init process'")
    assert accelerator.try_out("kvm", found, subject(kernel=None)).works


def test_a_guest_that_hangs_does_not_work_and_its_last_line_says_where(tmp_path):
    found = qemu(tmp_path, "printf 'Decompressing Linux\\r\\n\\r\\n'; exec sleep 60")
    verdict = accelerator.try_out("kvm", found, subject(), limit_s=0.3)
    assert not verdict.works
    assert "its last line: Decompressing Linux" in verdict.reason


def test_a_guest_that_qemu_stopped_does_not_work(tmp_path):
    found = qemu(tmp_path, "echo 'KVM internal error. Suberror: 1'; exec sleep 60")
    verdict = accelerator.try_out("kvm", found, subject())
    assert not verdict.works
    assert "KVM internal error. Suberror: 1" in verdict.reason


def test_a_qemu_that_fails_does_not_work_and_its_complaint_is_the_reason(tmp_path):
    found = qemu(tmp_path, "echo 'failed to initialize kvm: Permission denied' >&2; exit 1")
    assert accelerator.try_out("kvm", found, subject()) == Verdict(
        works=False, reason="failed to initialize kvm: Permission denied"
    )


def test_a_guest_that_ends_early_does_not_work(tmp_path):
    verdict = accelerator.try_out("kvm", qemu(tmp_path, "echo 'Linux version 6'"), subject())
    assert not verdict.works
    assert "Linux version 6" in verdict.reason


def test_without_the_guard_program_the_verdicts_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator.shutil, "which", lambda name: None)
    say = 'for last; do :; done; console="${last#file:}"'
    good = qemu(tmp_path, f'{say}; echo "{NO_ROOT}" > "$console"')
    assert accelerator.try_out("hvf", good, subject()).works
    hangs = qemu(tmp_path, f'{say}; echo "Booting" > "$console"; exec sleep 60')
    assert "its last line: Booting" in accelerator.try_out("hvf", hangs, subject(), limit_s=0.3).reason


def test_the_trial_writes_to_no_disk():
    words = accelerator.probe_argv("kvm", Qemu("qemu", "7.2", False), subject(kernel=None))
    (drive,) = [word for word in words if "disk" in word]
    assert "snapshot=on" in drive
    assert "file=/i/disk,,1.qcow2" in drive


def test_the_trial_of_a_uefi_machine_has_its_firmware_and_keeps_its_variables():
    options = accelerator.trial_firmware(Path("/fw/code.fd"), Path("/m/vars.fd"))
    code, variables = (option for option in options if option != "-drive")
    assert {"file=/fw/code.fd", "readonly=on"} <= set(code.split(","))
    assert {"file=/m/vars.fd", "snapshot=on"} <= set(variables.split(","))


def test_what_works_is_chosen(paths, device, tmp_path):
    assert choose(paths, qemu(tmp_path, f"echo '{NO_ROOT}'")) == "kvm"


def test_what_does_not_work_falls_back_to_emulation_and_says_why(paths, device, tmp_path):
    events = []
    assert (
        choose(paths, qemu(tmp_path, "echo 'Could not access KVM'; exit 1"), progress=events.append) == "tcg"
    )
    assert "Could not access KVM" in events[-1].message
    assert isinstance(events[-1], Notice)


def test_a_verdict_is_remembered(paths, device, tmp_path):
    found = qemu(tmp_path, f"echo '{NO_ROOT}'")
    assert [choose(paths, found), choose(paths, found)] == ["kvm", "kvm"]
    assert starts(tmp_path) == 1


def test_a_new_qemu_is_tried_again(paths, device, tmp_path):
    found = qemu(tmp_path, f"echo '{NO_ROOT}'")
    choose(paths, found)
    choose(paths, Qemu(found.binary, "8.0.0", False))
    assert starts(tmp_path) == 2


def test_a_damaged_cache_is_made_again(paths, device, tmp_path):
    paths.accelerators.write_text("{not json")
    assert choose(paths, qemu(tmp_path, f"echo '{NO_ROOT}'")) == "kvm"
    assert accelerator.load(paths)


def test_without_the_device_nothing_is_tried(paths, device, tmp_path):
    device.unlink()
    events = []
    assert choose(paths, qemu(tmp_path, "exit 0"), progress=events.append) == "tcg"
    assert starts(tmp_path) == 0
    assert "does not exist" in events[0].message


def test_a_foreign_architecture_is_emulated(paths, device, tmp_path):
    assert choose(paths, qemu(tmp_path, "exit 0"), of=subject(architecture="riscv64")) == "tcg"
    assert starts(tmp_path) == 0


def test_the_setting_is_taken_without_a_trial(paths, tmp_path):
    config = Config(qemu=QemuSettings(accelerator="kvm"))
    assert choose(paths, qemu(tmp_path, "exit 1"), config=config) == "kvm"
    assert starts(tmp_path) == 0


def test_the_environment_overrides_the_setting(paths, tmp_path):
    config = Config(qemu=QemuSettings(accelerator="kvm"))
    environ = {"AGENT_SWARM_ACCEL": "tcg"}
    assert choose(paths, qemu(tmp_path, "exit 1"), config=config, environ=environ) == "tcg"


def test_an_unknown_accelerator_is_a_usage_error(paths, tmp_path):
    with pytest.raises(UsageError, match="AGENT_SWARM_ACCEL=xen"):
        choose(paths, qemu(tmp_path, ""), environ={"AGENT_SWARM_ACCEL": "xen"})


def outlook(paths, found, environ=None):
    return accelerator.outlook(paths, Config(), environ or {}, found, native_architecture())


def test_before_the_first_machine_the_outlook_says_that_nothing_was_tried(paths, device, tmp_path):
    summary, warnings = outlook(paths, qemu(tmp_path, "exit 1"))
    assert "not tried yet" in summary
    assert warnings == []
    assert starts(tmp_path) == 0


def test_after_a_failed_trial_the_outlook_is_emulation_with_the_reason(paths, device, tmp_path):
    found = qemu(tmp_path, "echo 'Could not access KVM'; exit 1")
    choose(paths, found)
    summary, warnings = outlook(paths, found)
    assert summary == "TCG (software emulation)"
    assert "Could not access KVM" in warnings[0]


def test_after_a_good_trial_the_outlook_is_the_accelerator(paths, device, tmp_path):
    found = qemu(tmp_path, f"echo '{NO_ROOT}'")
    choose(paths, found)
    assert outlook(paths, found) == ("KVM", [])
