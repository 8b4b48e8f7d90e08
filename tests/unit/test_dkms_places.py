# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands at DKMS's places, and what keeps DKMS quiet beside us: the scripts, run by the real sh."""

import re
import subprocess
from pathlib import Path

import pytest

from kmodhookd.cli.dkms import VERSIONS

TOP = Path(__file__).resolve().parents[2]
MARK = "# made by kmodhookd: it keeps DKMS's own automatic builds off"
SWITCH = "/etc/dkms/no-autoinstall"
SCRIPTS = {
    "hooks/common.sh": "/usr/lib/kmodhookd/hooks/common.sh",
    "hooks/dkms/common.postinst": "/usr/lib/dkms/common.postinst",
    "hooks/dkms/dkms_autoinstaller": "/usr/lib/dkms/dkms_autoinstaller",
    "systemd/package/beside.sh": "/usr/lib/kmodhookd/beside",
}
# Every directory that they name, moved below the test's own.
DIRECTORIES = re.compile(r"(?<![\w/])/(?:etc|lib|usr/lib|usr/share|usr/src|var/lib)(?=/)")
POSTINST = "/usr/lib/dkms/common.postinst"
AUTOINSTALLER = "/usr/lib/dkms/dkms_autoinstaller"
BESIDE = "/usr/lib/kmodhookd/beside"
K = "6.1.0-56-amd64"


class Place:
    """A machine with the scripts installed and a dkms and a kmodhookctl that only note how they were called."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for name, inside in SCRIPTS.items():
            self.file(inside, DIRECTORIES.sub(lambda found: f"{top}{found[0]}", (TOP / name).read_text()))
            self.path(inside).chmod(0o755)
        self.programs()

    def path(self, inside: str) -> Path:
        return self.top / inside.strip("/")

    def file(self, inside: str, text: str = "") -> None:
        self.path(inside).parent.mkdir(parents=True, exist_ok=True)
        self.path(inside).write_text(text)

    def programs(self, **statuses: int) -> None:
        """Make the programs, with the exit status of each `PROGRAM_VERB`."""
        for program in ("dkms", "kmodhookctl"):
            cases = [f"{verb}) exit {statuses[f'{program}_{verb}']} ;;" for verb in verbs(program, statuses)]
            body = f'#!/bin/sh\necho "{program} $*" >>{self.top}/calls\ncase $1 in {" ".join(cases)} esac\n'
            self.file(f"/bin/{program}", body.replace("in  esac", "in *) ;; esac"))
            self.path(f"/bin/{program}").chmod(0o755)

    def run(self, script: str, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": f"{self.top}/bin:/usr/bin:/bin", **env}
        command = [str(self.path(script)), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    def calls(self) -> list[str]:
        """What was called since the last time."""
        log = self.path("/calls")
        said = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return said


def verbs(program: str, statuses: dict[str, int]) -> list[str]:
    return [name.removeprefix(f"{program}_") for name in statuses if name.startswith(f"{program}_")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class TestCommonPostinst:
    WORDS = ("foo", "1.0", "/usr/share/foo-dkms", "", "0.9-1")

    def test_source_is_taken_in_and_built(self, place: Place) -> None:
        place.file("/usr/src/foo-1.0/dkms.conf")
        done = place.run(POSTINST, *self.WORDS)
        assert (done.returncode, done.stdout) == (0, ""), "standard output may be debconf's"
        assert place.calls() == ["kmodhookctl add foo/1.0", "kmodhookctl install foo/1.0"]

    def test_a_tarball_comes_before_the_source(self, place: Place) -> None:
        place.file("/usr/src/foo-1.0/dkms.conf")
        place.file("/tarballs/foo-1.0.dkms.tar.gz")
        tarballs = f"{place.top}/tarballs"
        assert place.run(POSTINST, "foo", "1.0", tarballs).returncode == 0
        loaded = f"dkms ldtarball --force --archive {tarballs}/foo-1.0.dkms.tar.gz"
        assert place.calls() == [loaded, "kmodhookctl install foo/1.0"]
        place.programs(dkms_ldtarball=6)
        assert place.run(POSTINST, "foo", "1.0", tarballs).returncode == 2

    def test_names_are_needed(self, place: Place) -> None:
        assert place.run(POSTINST, "foo").returncode == 1
        assert place.calls() == []

    @pytest.mark.parametrize(
        ("setting", "failed"),
        [
            ("", 0),
            ('continue_on_error="true"\n', 0),
            ('# continue_on_error=""\n', 0),
            ('continue_on_error=""\n', 1),
            ("continue_on_error=false\n", 1),
            (" continue_on_error='no' # word\n", 1),
            ("continue_on_error=\ncontinue_on_error=1\n", 0),
        ],
    )
    def test_a_failing_build_fails_the_package_only_where_that_is_wanted(
        self, place: Place, setting: str, failed: int
    ) -> None:
        place.file("/etc/dkms/framework.conf", setting)
        place.programs(kmodhookctl_install=1)
        done = place.run(POSTINST, *self.WORDS)
        assert done.returncode == failed
        assert ("kmodhookctl explain foo/1.0" in done.stderr) is not failed

    def test_a_drop_in_counts_after_the_file(self, place: Place) -> None:
        place.file("/etc/dkms/framework.conf", "continue_on_error=true\n")
        place.file("/etc/dkms/framework.conf.d/10-mine.conf", "continue_on_error=\n")
        place.programs(kmodhookctl_install=1)
        assert place.run(POSTINST, *self.WORDS).returncode == 1

    def test_what_waits_for_its_headers_is_no_failure(self, place: Place) -> None:
        place.file("/etc/dkms/framework.conf", "continue_on_error=\n")
        place.programs(kmodhookctl_install=2)
        assert place.run(POSTINST, *self.WORDS).returncode == 0

    def test_without_a_python_there_is_a_note(self, place: Place) -> None:
        place.file("/usr/src/foo-1.0/dkms.conf")
        place.file("/etc/dkms/framework.conf", "continue_on_error=\n")
        place.programs(kmodhookctl_add=5)
        assert place.run(POSTINST, *self.WORDS).returncode == 0
        assert place.calls() == ["kmodhookctl add foo/1.0"]
        assert [note.read_text() for note in place.path("/var/lib/kmodhookd/notes").iterdir()] == ["dpkg targets\n"]

    @pytest.mark.parametrize(("text", "calls"), [("", 0), ("# no builds, please\n", 0), (f"{MARK}\n", 1)])
    def test_an_administrators_switch_counts_and_ours_does_not(self, place: Place, text: str, calls: int) -> None:
        place.file(SWITCH, text)
        assert place.run(POSTINST, *self.WORDS).returncode == 0
        assert len(place.calls()) == calls


class TestAutoinstaller:
    def test_it_calls_dkms_for_the_kernel_and_passes_its_status_on(self, place: Place) -> None:
        place.path(f"/lib/modules/{K}/build/include").mkdir(parents=True)
        assert place.run(AUTOINSTALLER, "start", K).returncode == 0
        assert place.calls() == [f"dkms autoinstall --kernelver {K}"]
        place.programs(dkms_autoinstall=11)
        assert place.run(AUTOINSTALLER, "start", K).returncode == 11

    def test_without_headers_it_is_told_by_name_and_fails_nobody(self, place: Place) -> None:
        place.programs(dkms_autoinstall=21)
        assert place.run(AUTOINSTALLER, "start", K).returncode == 0
        assert place.calls() == [f"dkms autoinstall --kernelver {K}"]

    def test_an_administrators_switch_counts(self, place: Place) -> None:
        place.path(f"/lib/modules/{K}/build/include").mkdir(parents=True)
        place.file(SWITCH)
        assert place.run(AUTOINSTALLER, "start", K).returncode == 0
        assert place.calls() == []

    def test_dkmss_leftover_kernel_hook_does_not_do_it_again(self, place: Place) -> None:
        place.path(f"/lib/modules/{K}/build/include").mkdir(parents=True)
        place.file("/etc/kernel/postinst.d/00-kmodhookd")
        place.path("/etc/kernel/postinst.d/00-kmodhookd").chmod(0o755)
        assert place.run(AUTOINSTALLER, "start", K, DEB_MAINT_PARAMS="configure").returncode == 0
        assert place.calls() == []
        assert place.run(AUTOINSTALLER, "start", K).returncode == 0
        assert place.calls() == [f"dkms autoinstall --kernelver {K}"]

    @pytest.mark.parametrize(("word", "status"), [("stop", 0), ("status", 0), ("", 2), ("begin", 2)])
    def test_the_other_words_of_an_init_script(self, place: Place, word: str, status: int) -> None:
        assert place.run(AUTOINSTALLER, word).returncode == status
        assert place.calls() == []


class TestBeside:
    MASKS = ("/etc/pacman.d/hooks/70-dkms-install.hook", "/etc/pacman.d/hooks/71-dkms-remove.hook")
    UNIT = "/etc/systemd/system/dkms.service"

    def test_the_switch_is_made_marked_and_taken_away(self, place: Place) -> None:
        for _ in range(2):
            assert place.run(BESIDE, "on").returncode == 0
        assert place.path(SWITCH).read_text().splitlines()[0] == MARK
        assert place.run(BESIDE, "off").returncode == 0
        assert not place.path("/etc/dkms").exists(), "nothing is left of a directory that only we needed"

    @pytest.mark.parametrize("text", ["", "keep off\n", f"{MARK} no more\n", f"\n{MARK}\n"])
    def test_an_administrators_own_is_left_alone(self, place: Place, text: str) -> None:
        place.file(SWITCH, text)
        place.run(BESIDE, "on")
        place.run(BESIDE, "off")
        assert place.path(SWITCH).read_text() == text

    def test_pacmans_hooks_of_dkms_are_masked_and_come_back(self, place: Place) -> None:
        place.path("/usr/share/libalpm").mkdir(parents=True)
        place.run(BESIDE, "on")
        for mask in (*self.MASKS, self.UNIT):
            assert place.path(mask).readlink() == Path("/dev/null")
        place.run(BESIDE, "off")
        assert not any(place.path(mask).is_symlink() for mask in (*self.MASKS, self.UNIT))
        assert not place.path("/etc/pacman.d/hooks").exists()

    def test_masks_that_are_somebody_elses_stay(self, place: Place) -> None:
        place.path("/usr/share/libalpm").mkdir(parents=True)
        own, masked = self.MASKS
        place.file(own, "[Trigger]\n")
        place.path(masked).symlink_to("/dev/null")
        place.run(BESIDE, "on")
        place.path(self.UNIT).unlink()
        place.file(self.UNIT, "[Service]\n")  # made since
        place.run(BESIDE, "off")
        assert place.path(own).read_text() == "[Trigger]\n"
        assert place.path(masked).readlink() == Path("/dev/null")
        assert place.path(self.UNIT).read_text() == "[Service]\n"

    def test_without_pacman_only_a_unit_that_is_there_is_masked(self, place: Place) -> None:
        place.run(BESIDE, "on")
        assert not place.path(self.UNIT).is_symlink()
        place.file("/usr/lib/systemd/system/dkms.service")
        place.run(BESIDE, "on")
        assert place.path(self.UNIT).readlink() == Path("/dev/null")


def test_what_the_package_says_it_provides_is_what_our_dkms_says_it_is() -> None:
    """-dkms packages depend on `dkms (>= VERSION)`."""
    assert VERSIONS["3.4"] == f"dkms-{(TOP / 'systemd/package/dkms-version').read_text().strip()}"
