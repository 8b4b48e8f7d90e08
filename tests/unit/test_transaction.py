# SPDX-License-Identifier: GPL-2.0-or-later
"""What hooks understand of paths, sources and processes, the notes they leave, and the words of the summary."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kmodhookd import notes
from kmodhookd.announce import text
from kmodhookd.cli import patience, transaction
from kmodhookd.cli.news import bus_news
from kmodhookd.model import BootVerdict, Cell, Fact, Failure, FailureClass, MissingHeaders, State
from kmodhookd.protocol import JobEvent, Snapshot, WorkerEvent
from kmodhookd.root import Root

K = "6.1.0-56-amd64"
RT = "6.1.0-56-rt-amd64"


def row(module: str, state: State, kernel: str = K, reason: str = "", line: str = "", remedy: str = "") -> text.Row:
    return text.Row(module, "1.0", kernel, state, reason, line, remedy)


def missing(cause: str = "missing", flavour: str = "rt-amd64", kernel: str = RT) -> MissingHeaders:
    package = f"linux-headers-{kernel}"
    return MissingHeaders(
        kernel=kernel,
        flavour=flavour,
        package=package,
        command=f"apt install {package}",
        cause=cause,
        modules=("acpi-call", "evdi"),
    )


# --- the summary ----------------------------------------------------------------------------------------------------


def test_nothing_to_say() -> None:
    """A machine without out-of-tree modules sees not one line."""
    assert text.summary(text.News()) == []
    assert text.summary(text.News((), (missing(),)), "dpkg") == []


def test_ready_modules_are_one_line() -> None:
    news = text.News((row("evdi", State.INSTALLED), row("jool", State.REUSED), row("zfs", State.STALE)))
    assert text.summary(news, "dpkg") == [f"kmodhookd: {K}: 3 modules ready: evdi/1.0, jool/1.0, zfs/1.0"]
    assert text.summary(text.News(news.rows[:1]), "alpm") == [f"==> {K}: 1 module ready: evdi/1.0"]


def test_missing_headers_name_kernel_modules_package_and_command() -> None:
    news = text.News(
        (row("evdi", State.WAITING_HEADERS, RT), row("acpi-call", State.WAITING_HEADERS, RT)), (missing(),)
    )
    assert text.summary(news, "dpkg") == [
        "",
        f"W: kmodhookd: {RT} has no headers, so acpi-call and evdi cannot be built for it",
        f"W:   to install them: apt install linux-headers-{RT}",
    ]


def test_a_flavour_that_the_release_does_not_tell_is_named() -> None:
    headers = missing(kernel="6.6.5-1", flavour="lts")
    lines = text.summary(text.News((row("evdi", State.WAITING_HEADERS, "6.6.5-1"),), (headers,)), "alpm")
    assert lines[1].startswith("==> WARNING: 6.6.5-1 (lts) has no headers")


def test_foreign_headers_say_why() -> None:
    headers = missing("mismatched: they are for 6.1.0-55")
    lines = text.summary(text.News((row("evdi", State.WAITING_HEADERS, RT),), (headers,)))
    assert "are not its own" in lines[1]
    assert "they are for 6.1.0-55" in lines[2]


def test_a_failure_gives_the_compilers_line_and_the_log() -> None:
    failed = row(
        "evdi", State.FAILED, reason="the source does not compile", line="a.c:1: error: x", remedy="upgrade it"
    )
    assert text.summary(text.News((failed,)), "alpm") == [
        "",
        f"==> WARNING: evdi/1.0 failed for {K}: the source does not compile",
        "  -> a.c:1: error: x",
        "  -> upgrade it",
        f"  -> the log: kmodhookctl log evdi/1.0 -k {K}",
    ]


def test_warnings_come_last_and_broken_sources_once() -> None:
    rows = [row("bad", State.BROKEN, kernel, "dkms.conf: no PACKAGE_NAME") for kernel in (K, RT)]
    rows += [row("evdi", State.INSTALLED, kernel) for kernel in (K, RT)]
    lines = text.summary(text.News(tuple(rows)), "dpkg")
    assert [line.startswith("W:") for line in lines] == [False, False, False, True, True]
    assert sum("bad/1.0 cannot be built" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.EXCLUDED, "does not go there: BUILD_EXCLUSIVE"),
        (State.IN_TREE, "the kernel has its own"),
        (State.WAITING_KERNEL, "only the headers are installed; its module follows"),
        (State.WAITING_DEPENDENCY, "is not built for"),
        (State.DAMAGED, "is damaged"),
    ],
)
def test_what_did_not_go_ahead_is_said(state: State, words: str) -> None:
    assert words in "\n".join(text.summary(text.News((row("evdi", state, reason="BUILD_EXCLUSIVE"),))))


def test_giving_up_says_what_goes_on() -> None:
    news = text.News((row("evdi", State.BUILDING),))
    assert text.summary(news) == []
    assert "still being built: evdi/1.0" in text.summary(news, gave_up="nothing moved for 60 s")[0]


def test_giving_up_without_a_daemon_says_what_was_not_done() -> None:
    def cell(module: str, state: State, *, wanted: bool = True) -> Cell:
        return Cell(module=module, version="1", kernel=K, arch="x86_64", state=state, wanted=wanted)

    cells = (cell("evdi", State.ADDED), cell("jool", State.BUILT), cell("old", State.ADDED, wanted=False))
    news = text.from_snapshot(Snapshot(cells=cells), gave_up=True)
    assert text.summary(news, "alpm", gave_up="nothing moved for 60 s", alone=True) == [
        "",
        f"==> WARNING: evdi/1 and jool/1 are not built for {K}: nothing moved for 60 s",
        "  -> it is done when kmodhookd starts next, or now: kmodhookd --once",
    ]
    assert text.summary(text.from_snapshot(Snapshot(cells=cells)), "alpm") == []


def not_ready(kernel: str, *modules: str) -> BootVerdict:
    reasons = tuple((module, "failed: x", "") for module in modules)
    return BootVerdict(kernel=kernel, verdict="not-ready" if modules else "ready", reasons=reasons)


def test_a_next_boot_that_is_not_ready_is_said_in_one_line_at_the_end() -> None:
    rows = (row("evdi", State.FAILED, reason="no"), row("jool", State.INSTALLED))
    lines = text.summary(text.News(rows, (), not_ready(K, "evdi", "zfs", "evdi")), "dpkg")
    ending = f"W: kmodhookd: the next boot takes {K}, which is not ready because of evdi and zfs: kmodhookctl check"
    assert lines[-1] == ending
    assert "next boot" not in "\n".join(text.summary(text.News(rows, (), not_ready(K))))
    assert "next boot" not in "\n".join(text.summary(text.News(rows)))
    busy = text.summary(text.News((row("evdi", State.BUILDING),), (), not_ready(K, "evdi")), gave_up="60 s")
    assert busy[-1].endswith("because of evdi: kmodhookctl wait")


def test_the_next_boot_is_no_news_of_a_transaction_that_did_not_touch_its_kernel() -> None:
    news = text.News((row("evdi", State.FAILED), row("evdi", State.INSTALLED, RT)), (), not_ready(K, "evdi"))
    assert news.about({K}, ()).boot == news.boot
    assert news.about({RT}, ()).boot is None


def test_the_snapshot_tells_which_boot_is_next() -> None:
    both = (not_ready(K, "evdi"), not_ready(RT, "jool"))
    assert text.from_snapshot(Snapshot(boot=both, boot_default=RT)).boot == both[1]
    assert text.from_snapshot(Snapshot(boot=both)).boot is None


class FakeDaemon:
    """What a summary asks of a daemon."""

    def __init__(self, verdict: BootVerdict) -> None:
        self.verdict = verdict

    def failures(self) -> list[tuple[str, ...]]:
        return []

    missing_headers = failures

    def status(self) -> list[tuple[str, ...]]:
        return [("evdi", "1.0", self.verdict.kernel, "x86_64", "installed")]

    def check_boot(self) -> tuple[str, list[tuple[str, str, str]]]:
        return self.verdict.verdict, list(self.verdict.reasons)

    def kernels(self) -> list[dict[str, object]]:
        return [{"release": "x", "boot_default": False}, {"release": self.verdict.kernel, "boot_default": True}]


def test_the_daemon_s_word_on_the_next_boot_is_the_same_news(tmp_path: Path) -> None:
    for verdict, expected in ((not_ready(K, "evdi"), not_ready(K, "evdi")), (not_ready(K), None)):
        assert bus_news(FakeDaemon(verdict), Root(tmp_path)).boot == expected  # type: ignore[arg-type]


def test_the_daemon_s_word_on_what_is_not_there_is_the_last_it_says() -> None:
    source = {"fact": "source", "verdict": "there, of no package", "remedy": ""}
    built = {"fact": "built", "verdict": "failed", "remedy": "", "class": "source", "line": "evdi.c:7: error: no"}
    told = {
        "failed": [source, built, {"fact": "state", "verdict": "failed: no: evdi.c:7: error: no", "remedy": "newer"}],
        "waiting-dependency": [source, {"fact": "state", "verdict": "waiting-dependency: needs drm", "remedy": ""}],
    }

    class Telling(FakeDaemon):
        def failures(self) -> list[tuple[str, ...]]:
            return [("failed", "1.0", K, "no")]

        def missing_headers(self) -> list[tuple[str, ...]]:
            return []

        def status(self) -> list[tuple[str, ...]]:
            return [(state, "1.0", K, "x86_64", state) for state in told]

        def explain(self, module: str, _version: str, _kernel: str) -> list[dict[str, str]]:
            return told[module]

    rows = bus_news(Telling(not_ready(K)), Root("/")).rows  # type: ignore[arg-type]
    assert [(row.reason, row.line, row.remedy) for row in rows] == [
        ("no", "evdi.c:7: error: no", "newer"),
        ("needs drm", "", ""),
    ]


def test_only_what_the_transaction_touched() -> None:
    news = text.News((row("evdi", State.INSTALLED), row("jool", State.INSTALLED, RT)), (missing(),))
    assert [one.module for one in news.about({K}, ()).rows] == ["evdi"]
    assert news.about({K}, ()).missing == ()
    assert [one.module for one in news.about((), {"jool-1.0"}).rows] == ["jool"]
    assert news.about((), {"jool-1.0"}).missing == (missing(),)


def test_a_snapshot_as_news() -> None:
    failure = Failure(
        module="evdi",
        version="1.0",
        kernel=K,
        arch="x86_64",
        cause=FailureClass.SOURCE,
        reason="it does not compile",
        line="a.c:1: error",
        remedy="upgrade",
    )
    cells = (
        Cell(module="evdi", version="1.0", kernel=K, arch="x86_64", state=State.FAILED),
        Cell(
            module="x",
            version="2",
            kernel=K,
            arch="x86_64",
            state=State.EXCLUDED,
            facts=(Fact(fact="dkms.conf", verdict="not for it", remedy="none"),),
        ),
    )
    news = text.from_snapshot(Snapshot(cells=cells, failures=(failure,)))
    assert news.rows[0] == row("evdi", State.FAILED, K, "it does not compile", "a.c:1: error", "upgrade")
    assert (news.rows[1].reason, news.rows[1].remedy) == ("not for it", "none")


def test_a_pass_in_the_foreground_tells_of_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    printer = text.OncePrinter()
    for kind, result in (("started", ""), ("progress", ""), ("finished", "done")):
        job = JobEvent.model_validate(
            {"kind": kind, "id": 1, "module": "evdi", "version": "1.0", "kernel": K, "result": result}
        )
        printer(WorkerEvent(job=job))
    printer.finish()
    assert capsys.readouterr().out == f"kmodhookd: building evdi/1.0 for {K}\nkmodhookd: evdi/1.0 for {K}: done\n"


# --- what hooks understand ------------------------------------------------------------------------------------------


def test_targets() -> None:
    paths = [
        f"usr/lib/modules/{K}/vmlinuz",
        f"/lib/modules/{RT}/modules.order",
        f"usr/lib/modules/{K}/build/include/",
        "usr/src/evdi-1.0/dkms.conf",
        "usr/lib/modules/",
        "/usr/src",
        "usr/src/stray-file",
        "usr/lib/modules/-k/vmlinuz",
        "usr/lib/modules/../vmlinuz",
        "usr/lib/modules/a b/vmlinuz",
        "usr/src/x\\xff/dkms.conf",
    ]
    assert transaction.concerned(paths) == ([K, RT], ["evdi-1.0"])


def test_changed_sources(tmp_path: Path) -> None:
    source = tmp_path / "usr/src/evdi-1.0"
    source.mkdir(parents=True)
    (source / "dkms.conf").write_text("PACKAGE_NAME=evdi\n")
    linked = tmp_path / "opt/jool"
    linked.mkdir(parents=True)
    (linked / "dkms.conf").write_text("")
    (tmp_path / "usr/src/jool-2").symlink_to("/opt/jool")
    (tmp_path / "usr/src/linux-headers-1").mkdir()
    root = Root(tmp_path)
    before = transaction.source_stamps(root)
    assert sorted(before) == ["evdi-1.0", "jool-2"]
    assert transaction.changed_sources(before, transaction.source_stamps(root)) == []
    (linked / "dkms.conf").write_text("PACKAGE_NAME=jool\n")
    (source / "dkms.conf").unlink()
    (tmp_path / "usr/src/new-1").mkdir()
    (tmp_path / "usr/src/new-1/dkms.conf").write_text("")
    assert sorted(transaction.changed_sources(before, transaction.source_stamps(root))) == ["jool-2", "new-1"]
    assert transaction.changed_sources(None, transaction.source_stamps(root)) == []


def test_the_uppermost_package_manager_is_the_transaction(tmp_path: Path) -> None:
    """apt-get runs dpkg runs a script runs us."""
    here = Path(transaction.__file__).parents[2]
    ask = f"""
import sys
sys.path.insert(0, {str(here)!r})
from kmodhookd.cli import patience, transaction
from kmodhookd.cli.news import bus_news
print(transaction.package_manager())
"""
    for name in ("apt-get", "dpkg"):
        (tmp_path / name).symlink_to("/bin/sh")
    # A command after the last one keeps the shell from becoming it.
    argv = [
        str(tmp_path / "apt-get"),
        "-c",
        'echo $$; "$0" "$@"; true',
        str(tmp_path / "dpkg"),
        "-c",
        '"$@"; true',
        "dpkg",
    ]
    result = subprocess.run([*argv, sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    top, said = result.stdout.split()
    assert said == top


def test_notes_are_taken_once(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert notes.take(root) == []
    notes.leave(root, "dpkg", "kernel", [K])
    notes.leave(root, "alpm", "targets")
    (tmp_path / "var/lib/kmodhookd/notes/odd").write_bytes(b"\xff\n")
    assert sorted(notes.take(root)) == ["alpm targets", f"dpkg kernel {K}", "�"]
    assert notes.take(root) == []


def test_a_limit_ends_the_work_and_is_taken_back() -> None:
    ended: list[str] = []
    with patience.limited(lambda: ended.append("asked"), 600) as limits:
        os.kill(os.getpid(), 15)
    assert (ended, limits.gave_up) == (["asked"], "it was interrupted")
    late = threading.Event()
    with patience.limited(late.set, 0.01) as limits:
        assert late.wait(60)
    assert limits.gave_up == "the limit of 0.01 s was over"


def test_progress_keeps_the_limit_away() -> None:
    stalled = threading.Event()
    with patience.limited(stalled.set, 600, 2) as limits:
        for _ in range(12):
            time.sleep(0.25)
            limits.progressed()
        assert not stalled.is_set(), "three seconds, but never two without progress"
        assert stalled.wait(60)
    assert limits.gave_up == "nothing moved for 2 s"


def test_a_build_that_fails_again_is_not_told_of_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure just after its inputs changed is provisional: it is tried again, perhaps by the next hook."""
    events = [("started", ""), ("finished", "failed")] * 2 + [("started", ""), ("finished", "done")]
    for kind, result in events:  # each in a hook of its own
        hook = transaction.Hook("alpm", Root(tmp_path))
        hook._progress(
            JobEvent.model_validate(
                {"kind": kind, "id": 1, "module": "evdi", "version": "1", "kernel": K, "result": result}
            )
        )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"==> building evdi/1 for {K}",
        f"==> evdi/1 for {K}: failed",
        f"==> evdi/1 for {K}: done",
    ]


def test_each_root_has_its_own_transaction(tmp_path: Path) -> None:
    """A chroot may share /run with the system around it."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run").symlink_to(tmp_path / "run")
    paths = [transaction.Hook("alpm", Root(tmp_path / name)).path.name for name in ("one", "two")]
    assert paths[0] != paths[1]
