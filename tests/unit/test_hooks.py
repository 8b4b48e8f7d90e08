# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook scripts, run by the real sh with a kmodhookctl that behaves, hangs, fails, or is not there.

Whatever it does: status 0, in bounded time, nothing left that holds the package manager's pipes, and a note where
someone has to look later.
"""

import configparser
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
RELEASE = "6.1.0-56-amd64"
ALPM_HOOKS = sorted((HOOKS / "alpm").glob("*.hook"))


class Installed:
    """The hooks as a package lays them out, below a directory of the test's own."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.notes = top / "state/notes"
        self.bin = top / "bin"
        self.calls = top / "calls"
        library = top / "lib/hooks"
        self._copy("common.sh", library / "common.sh")
        self._copy("dpkg/transaction", library / "dpkg/transaction")
        self._copy("alpm/kmodhookd", library / "alpm/kmodhookd")
        self._copy("kernel-install/45-kmodhookd.install", top / "install.d/45-kmodhookd.install")
        for phase in ("postinst", "header_postinst", "prerm", "postrm"):
            self._copy("dpkg/kernel", top / f"kernel/{phase}.d/00-kmodhookd")
        (top / "etc").mkdir()
        (top / "etc/config.toml").write_text("[hooks]\n#total = 5\n  total = 1  # seconds\n")
        self.bin.mkdir()

    def _copy(self, name: str, target: Path) -> None:
        text = (HOOKS / name).read_text()
        for inside, here in (
            ("/usr/lib/kmodhookd", "lib"),
            ("/var/lib/kmodhookd", "state"),
            ("/etc/kmodhookd", "etc"),
        ):
            text = text.replace(inside, str(self.top / here))
        # The limits of the real thing are for people; these are for tests.
        text = re.sub(r"SLACK=\d+", "SLACK=1", text.replace("timeout -k 5", "timeout -k 1"))
        text = re.sub(r"ctl (20|60|120) ", "ctl 2 ", text)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod((HOOKS / name).stat().st_mode)

    def ctl(self, body: str) -> None:
        """Make the kmodhookctl of this test."""
        program = self.bin / "kmodhookctl"
        program.write_text(f'#!/bin/sh\necho "$*" >>"{self.calls}"\n{body}\n')
        program.chmod(0o755)

    def run(
        self, script: str, *words: str, stdin: str | None = "", params: str | None = None, timeout: float = 90
    ) -> "subprocess.CompletedProcess[str]":
        """Run a hook to the end of its output, not only of itself: who holds its pipe is noticed."""
        env = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        if params is not None:
            env["DEB_MAINT_PARAMS"] = params
        return subprocess.run(
            [self.top / script, *words],
            env=env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def called(self) -> list[str]:
        """What kmodhookctl was called with."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def noted(self) -> list[str]:
        """The lines of all notes."""
        return sorted(path.read_text().strip() for path in self.notes.glob("*")) if self.notes.exists() else []


@pytest.fixture
def hooks(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


POSTINST = ("kernel/postinst.d/00-kmodhookd", RELEASE, f"/boot/vmlinuz-{RELEASE}")
HEADERS = ("kernel/header_postinst.d/00-kmodhookd", RELEASE)
PRERM = ("kernel/prerm.d/00-kmodhookd", RELEASE, f"/boot/vmlinuz-{RELEASE}")
POSTRM = ("kernel/postrm.d/00-kmodhookd", RELEASE, f"/boot/vmlinuz-{RELEASE}")
ALPM = "lib/hooks/alpm/kmodhookd"
KERNEL_INSTALL = "install.d/45-kmodhookd.install"

# script and words, DEB_MAINT_PARAMS → what kmodhookctl is called with, the note when it cannot run
CALLS: list[tuple[Sequence[str], str | None, str, str]] = [
    (POSTINST, "configure 6.1.0-55", f"hook kernel dpkg {RELEASE}", f"dpkg kernel {RELEASE}"),
    (POSTINST, "'configure' ''", f"hook kernel dpkg {RELEASE}", f"dpkg kernel {RELEASE}"),
    (POSTINST, None, f"hook kernel dpkg {RELEASE}", f"dpkg kernel {RELEASE}"),
    (POSTINST, "abort-upgrade 6.1.0-55", "", ""),
    (HEADERS, None, f"hook kernel dpkg {RELEASE}", f"dpkg kernel {RELEASE}"),
    (PRERM, "remove", f"hook leaving dpkg {RELEASE}", f"dpkg leaving {RELEASE}"),
    (PRERM, "upgrade 6.1.0-57", "", ""),
    (POSTRM, "purge", f"hook gone dpkg {RELEASE}", f"dpkg gone {RELEASE}"),
    (POSTRM, "upgrade 6.1.0-57", "", ""),
    (("lib/hooks/dpkg/transaction", "begin"), None, "hook begin dpkg", ""),
    (("lib/hooks/dpkg/transaction", "end"), None, "hook end dpkg --summary", ""),
    ((ALPM, "begin"), None, "hook begin alpm -", ""),
    ((ALPM, "install"), None, "hook targets alpm", "alpm targets"),
    ((ALPM, "remove"), None, "hook targets alpm --removed", "alpm targets --removed"),
    ((ALPM, "summary"), None, "hook end alpm --summary", ""),
    (
        (KERNEL_INSTALL, "add", RELEASE),
        None,
        f"hook kernel kernel-install {RELEASE}",
        f"kernel-install kernel {RELEASE}",
    ),
    (
        (KERNEL_INSTALL, "remove", RELEASE),
        None,
        f"hook leaving kernel-install {RELEASE}",
        f"kernel-install leaving {RELEASE}",
    ),
    ((KERNEL_INSTALL, "inspect"), None, "", ""),
]


@pytest.mark.parametrize(("words", "params", "call", "note"), CALLS)
def test_calls(hooks: Installed, words: Sequence[str], params: str | None, call: str, note: str) -> None:
    hooks.ctl("echo building; echo noise >&2; exit 0")
    result = hooks.run(*words, params=params)
    assert result.returncode == 0
    assert hooks.called() == ([call] if call else [])
    assert result.stdout == ("building\n" if call else "")
    assert hooks.noted() == []


@pytest.mark.parametrize("breakage", ["missing", "broken interpreter", "fails", "killed"])
@pytest.mark.parametrize(("words", "params", "call", "note"), CALLS)
def test_failures_are_silent_and_noted(
    hooks: Installed, words: Sequence[str], params: str | None, call: str, note: str, breakage: str
) -> None:
    program = hooks.bin / "kmodhookctl"
    if breakage == "broken interpreter":
        program.write_text("#!/nonexistent/python3 -I\n")
        program.chmod(0o755)
    elif breakage == "fails":
        hooks.ctl("echo 'Traceback (most recent call last):' >&2; exit 1")
    elif breakage == "killed":
        hooks.ctl("kill -KILL $$")
    result = hooks.run(*words, params=params)
    assert (result.returncode, result.stdout) == (0, "")
    assert hooks.noted() == ([note] if note else [])


@pytest.mark.parametrize("words", [POSTINST, (ALPM, "install"), (ALPM, "begin")])
@pytest.mark.parametrize("trap", [":", "trap '' TERM INT HUP"])
def test_a_hang_is_bounded(hooks: Installed, words: Sequence[str], trap: str) -> None:
    hooks.ctl(f"{trap}\nsleep 300 & sleep 300")
    started = time.monotonic()
    assert hooks.run(*words).returncode == 0
    assert time.monotonic() - started < 60
    assert len(hooks.noted()) == (0 if words[-1] == "begin" else 1)


def test_nothing_is_left_that_holds_the_pipe(hooks: Installed) -> None:
    hooks.ctl(f'sleep 300 &\necho $! >"{hooks.top}/child"')
    started = time.monotonic()
    assert hooks.run(*POSTINST).returncode == 0
    assert time.monotonic() - started < 60
    child = int((hooks.top / "child").read_text())
    time.sleep(0.2)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or ") Z " in state.read_text()


def test_targets_get_standard_input(hooks: Installed) -> None:
    hooks.ctl(f'cat >"{hooks.top}/seen"')
    assert hooks.run(ALPM, "install", stdin="usr/lib/modules/K/vmlinuz\nusr/src/x-1/dkms.conf\n").returncode == 0
    assert (hooks.top / "seen").read_text() == "usr/lib/modules/K/vmlinuz\nusr/src/x-1/dkms.conf\n"


def test_kernel_hooks_leave_standard_input_alone(hooks: Installed) -> None:
    hooks.ctl("cat >/dev/null")
    script = hooks.top / POSTINST[0]
    line = f'"{script}" {RELEASE} && cat'
    result = subprocess.run(
        ["sh", "-c", line],
        env={"PATH": f"{hooks.bin}:/usr/bin:/bin"},
        input="debconf's own\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "debconf's own\n"


def test_closed_standard_input(hooks: Installed) -> None:
    hooks.ctl("exit 0")
    result = subprocess.run(
        ["sh", "-c", f'"{hooks.top / ALPM}" begin <&-; echo $?'],
        env={"PATH": f"{hooks.bin}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, hooks.called()) == ("0\n", ["hook begin alpm -"])


def test_kernel_hooks_speak_on_standard_error(hooks: Installed) -> None:
    """Standard output may be debconf's."""
    hooks.ctl("echo words")
    script = hooks.top / POSTINST[0]
    env = {"PATH": f"{hooks.bin}:/usr/bin:/bin"}
    result = subprocess.run([script, RELEASE], env=env, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("", "words\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_impatient_person_is_obeyed(hooks: Installed, number: signal.Signals) -> None:
    hooks.ctl(f'echo $$ >"{hooks.top}/child"; exec sleep 300')
    (hooks.top / "etc/config.toml").write_text("[hooks]\ntotal = 100\n")
    # What is ignored when a shell starts stays ignored (sh(1)): tests that run under nohup, or in the background, are.
    process = subprocess.Popen(
        ["env", "--default-signal", hooks.top / POSTINST[0], RELEASE],
        env={"PATH": f"{hooks.bin}:/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    child = hooks.top / "child"
    deadline = time.monotonic() + 60
    while not (child.exists() and child.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not Path(f"/proc/{child.read_text().strip()}").exists()
    assert hooks.noted() == [f"dpkg kernel {RELEASE}"]


def test_a_removed_package_is_silent(hooks: Installed) -> None:
    """Debian keeps /etc/kernel's scripts until a purge."""
    shutil.rmtree(hooks.top / "lib")
    result = hooks.run(*POSTINST)
    assert (result.returncode, result.stdout, hooks.noted()) == (0, "", [])


@pytest.mark.parametrize(
    ("locked", "action", "calls"), [("", "unpack", 1), ("true", "unpack", 0), ("", "audit", 0), ("", "configure", 1)]
)
def test_bare_dpkg(hooks: Installed, locked: str, action: str, calls: int) -> None:
    hooks.ctl("exit 0")
    env = {"PATH": f"{hooks.bin}:/usr/bin:/bin", "DPKG_HOOK_ACTION": action}
    if locked:
        env["DPKG_FRONTEND_LOCKED"] = locked
    subprocess.run([hooks.top / "lib/hooks/dpkg/transaction", "begin", "--bare"], env=env, check=True)
    assert len(hooks.called()) == calls


# --- files that package managers parse ----------------------------------------------------------------------------------

# alpm-hooks(5) as of pacman 5.2: any other key makes every transaction of an older pacman fail.
ALPM_KEYS = {
    "Trigger": {"operation", "type", "target"},
    "Action": {"description", "when", "exec", "depends", "abortonfail", "needstargets"},
}


@pytest.mark.parametrize("path", ALPM_HOOKS, ids=lambda path: path.name)
def test_alpm_hook_keys(path: Path) -> None:
    parser = configparser.ConfigParser(strict=False, allow_no_value=True, interpolation=None)
    parser.read(path)
    assert set(parser.sections()) == set(ALPM_KEYS)
    for section, known in ALPM_KEYS.items():
        assert set(parser[section]) <= known
    assert "abortonfail" not in parser["Action"]
    assert parser["Action"]["when"] in ("PreTransaction", "PostTransaction")
    script, verb = parser["Action"]["exec"].split()
    assert script == "/usr/lib/kmodhookd/hooks/alpm/kmodhookd"
    assert re.search(rf"^{verb}\) ", (HOOKS / "alpm/kmodhookd").read_text(), re.MULTILINE)
    targets = re.findall(r"^Target = (.*)", path.read_text(), re.MULTILINE)
    assert targets and not any(target.startswith("/") for target in targets)


def test_alpm_hook_order() -> None:
    """libalpm sorts by strcmp of the names without suffix."""
    names = sorted([path.stem for path in ALPM_HOOKS] + ["60-depmod", "70-dkms-install", "90-mkinitcpio-install"])
    after = names.index
    assert after("60-depmod") < after("68-kmodhookd-python") < after("69-kmodhookd-install") < after("70-dkms-install")
    assert names[-1] == "zz-kmodhookd-summary"


def test_kernel_hook_order() -> None:
    names = sorted(["00-kmodhookd", "dkms", "dracut", "initramfs-tools", "zz-update-grub"])
    assert names[0] == "00-kmodhookd"
    assert re.fullmatch(r"[A-Za-z0-9_-]+", "00-kmodhookd")  # what run-parts takes


def test_package_manager_settings_cannot_fail() -> None:
    """apt and dpkg fail when one of these commands does, and the files outlive the package until a purge."""
    commands = re.findall(r'\{ "(.*)"; \}', (HOOKS / "dpkg/70kmodhookd").read_text())
    commands += re.findall(r"^(?:pre|post)-invoke=(.*)", (HOOKS / "dpkg/dpkg.cfg").read_text(), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
        failing = command.replace("/usr/lib/kmodhookd/hooks/dpkg/transaction", "/bin/false")
        assert failing != command
        assert subprocess.run(["sh", "-c", failing], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "shell"),
    [
        ("hooks/common.sh", "sh"),
        ("systemd/package/kmodhookd.install", "sh"),
        ("systemd/package/PKGBUILD", "bash"),
        ("systemd/completion/kmodhookctl", "bash"),
        ("systemd/completion/dkms", "bash"),
    ],
)
def test_shellcheck_of_what_has_no_interpreter_line(name: str, shell: str) -> None:
    argv = ["shellcheck", f"--shell={shell}", str(HOOKS.parent / name)]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
