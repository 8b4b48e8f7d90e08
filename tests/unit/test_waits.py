# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever has to wait for another program of ours reads that when the wait begins, not when it is over."""

import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import modules
import pytest
import trees
from bed.checkout import checkout
from dkmstrees import CONF, TREE, installed, version
from installations import SETTINGS, UPDATES, K

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.act.lock import work_lock
from kmodhookd.announce import text
from kmodhookd.cli import transaction
from kmodhookd.client import Event
from kmodhookd.export.tarball import make_tarball
from kmodhookd.model import Record
from kmodhookd.observe import decisions, dkmstree
from kmodhookd.observe.inventory import look
from kmodhookd.protocol import JobEvent, Request, WorkerEvent
from kmodhookd.root import Root

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(checkout())}
PATIENCE = 60.0  # seconds until a holder lets go although nothing was said
HOLDER = """
import sys
from kmodhookd.act.lock import engine_lock, work_lock
from kmodhookd.root import Root
from kmodhookd.settings import Settings
root, piece = Root(sys.argv[3]), sys.argv[4]
lock = work_lock(root, piece) if piece else engine_lock(root, Settings(), on_wait=print)
with lock:
    print("held", flush=True)
    sys.stdin.read()
"""
DKMS = "from kmodhookd.cli import dkms; sys.exit(dkms.main(sys.argv[2:], Root(sys.argv[1])))"
CTL = "from kmodhookd.cli import main; sys.exit(main.main([sys.argv[2], '--root', sys.argv[1], *sys.argv[3:]]))"
ONCE = "from kmodhookd import engine; from kmodhookd.settings import Settings; "
ONCE += "sys.exit(engine.once(Root(sys.argv[1]), Settings()))"
PRERM = "from kmodhookd.observe import maintscript; maintscript.upgrade = lambda: 'foo-dkms.prerm upgrade 2.0-1'; "


class Holder:
    """A second process that has a lock, until it is told to let go of it."""

    def __init__(self, root: Root, place: Path, piece: str = "") -> None:
        script = place / "kmodhookctl"
        script.write_text(HOLDER)
        command = [sys.executable, str(script), "install", "other/2.0", str(root.prefix), piece]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"
        self.released = False
        self.timer = threading.Timer(PATIENCE, self.release)
        self.timer.start()
        self.word = f"kmodhookctl install other/2.0 (process {self.process.pid})"

    def release(self) -> None:
        self.timer.cancel()
        self.released = True
        self.process.communicate()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modules.build(tmp_path_factory.mktemp("module") / "foo.ko", release=K, name="foo", info={"depends": ""})


@pytest.fixture
def root(tmp_path: Path, compiled: Path) -> Root:
    """A kernel, foo/1.0, which is registered and built for it, and there/1.0, which a person has put in."""
    conf = CONF.format("foo", "1.0") + "AUTOINSTALL=yes\n"
    entries: dict[str, trees.Content] = {
        **trees.DEBIAN,
        **trees.kernel(K),
        **trees.headers(K),
        **version("there"),
        **installed("there", K),
        "/usr/src/foo-1.0/dkms.conf": conf,
        "/usr/src/bar-1.0/dkms.conf": conf.replace("foo", "bar"),
        f"{TREE}/foo/1.0/source": trees.Link("/usr/src/foo-1.0"),
        f"{TREE}/foo/1.0/{K}/x86_64/module/foo.ko": compiled.read_bytes(),
    }
    made = trees.make(tmp_path / "root", entries)
    fingerprint = next(one for one in look(made, SETTINGS).placements if one.module == "foo").fingerprint
    known = {"module": "foo", "version": "1.0", "kernel": K, "arch": "x86_64", "fingerprint": fingerprint}
    decisions.save_record(made, Record.model_validate(known))
    return made


@pytest.fixture
def holder(root: Root, tmp_path: Path) -> Iterator[Holder]:
    made = Holder(root, tmp_path)
    yield made
    made.release()


def start(code: str, root: Root, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", f"import sys; from kmodhookd.root import Root; {code}", str(root.prefix), *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def archive(root: Root) -> Path:
    """A tarball of foo/1.0 with what is built of it."""
    entry = dkmstree.read(root, SETTINGS).versions["foo", "1.0"]
    target = root.prefix / "foo.tar.gz"
    make_tarball(root, entry, sorted(entry.built), target, binaries_only=False)
    with tarfile.open(target) as packed:
        assert any(name.endswith("foo.ko") for name in packed.getnames())
    return target


VERBS = {
    "installation": ("dkms", DKMS, f"install foo/1.0 -k {K}"),
    "registration": ("dkms", DKMS, "add bar/1.0"),
    "uninstall": ("dkms", DKMS, f"uninstall there/1.0 -k {K}"),
    "uninstall of kmodhookctl": ("kmodhookctl", CTL, f"uninstall there/1.0 -k {K}"),
    "ldtarball": ("dkms", DKMS, "ldtarball ARCHIVE --force"),
    "kernel_preinst": ("dkms", DKMS, f"kernel_preinst -k {K}"),
    "remove in an upgrade": ("dkms", PRERM + DKMS, "remove foo/1.0 --all"),
    "once": ("kmodhookd", ONCE, ""),
}


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_said_when_the_wait_begins_and_only_then(root: Root, holder: Holder, verb: str) -> None:
    program, code, line = VERBS[verb]
    words = [str(archive(root)) if word == "ARCHIVE" else word for word in line.split()]
    process = start(code, root, *words)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert not holder.released and process.poll() is None, "before the lock was let go"
    assert said == f"{program}: waiting for {Path(sys.executable).name} {holder.word} …\n"
    holder.release()
    out, err = process.communicate(timeout=PATIENCE)
    assert "waiting for" not in out + err, "and not again"
    if verb == "installation":
        assert process.returncode == 0 and (root.prefix / UPDATES.strip("/") / "foo.ko").exists(), err


def test_one_who_asks_for_silence_gets_it(root: Root, holder: Holder) -> None:
    process = start(DKMS, root, "uninstall", "there/1.0", "-k", K, "--quiet")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5)
    holder.release()
    assert process.communicate(timeout=PATIENCE) == ("", "")


def test_a_terminal_that_is_gone_ends_no_verb(root: Root, holder: Holder) -> None:
    process = start(DKMS, root, "install", "foo/1.0", "-k", K)
    assert process.stderr is not None
    process.stderr.close()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5)
    holder.release()
    assert process.wait(PATIENCE) == 0 and (root.prefix / UPDATES.strip("/") / "foo.ko").exists()


def test_in_a_pass_the_job_says_what_it_waits_for(root: Root, holder: Holder) -> None:
    """That is what the daemon's jobs and its progress signals show; the end of the job is told as ever."""
    events: list[WorkerEvent] = []
    waits = threading.Event()

    def emit(event: WorkerEvent) -> None:
        events.append(WorkerEvent.model_validate_json(event.model_dump_json()))  # as it comes to the daemon
        if event.job is not None and event.job.phase.startswith("waiting for"):
            waits.set()

    arguments = (root, SETTINGS, Request(number=1, prefix=str(root.prefix)), emit, Controls())
    thread = threading.Thread(target=engine.one_pass, args=arguments)
    thread.start()
    assert waits.wait(PATIENCE) and not holder.released
    holder.release()
    thread.join(PATIENCE)
    sentence = f"waiting for {Path(sys.executable).name} {holder.word}"
    assert [event.waiting for event in events if event.waiting is not None] == [sentence]
    jobs = [event.job for event in events if event.job is not None and event.job.module == "foo"]
    assert [(job.kind, job.phase or job.result) for job in jobs] == [
        ("progress", "queued"),
        ("started", "prepare"),
        ("progress", sentence),
        ("progress", "install"),
        ("finished", "done"),
    ]
    problems = [line for event in events if event.snapshot is not None for line in event.snapshot.problems]
    assert not [line for line in problems if "waiting for" in line]


def test_a_build_of_the_same_elsewhere_is_waited_for_with_a_word(root: Root, tmp_path: Path) -> None:
    cell = f"foo@1.0@{K}@x86_64"
    holder = Holder(root, tmp_path, cell)
    process = start(DKMS, root, "build", "foo/1.0", "-k", K, "--force")
    assert process.stderr is not None
    said = process.stderr.readline()
    assert not holder.released and process.poll() is None
    assert said == f"dkms: waiting for {Path(sys.executable).name} {holder.word} …\n"
    holder.release()
    process.communicate(timeout=PATIENCE)
    with work_lock(root, cell):
        pass


def test_hooks_say_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "waiting for dkms install x/1 (process 7)"
    hook = transaction.Hook("alpm", Root(tmp_path))
    for number, module in enumerate(("one", "two"), 1):
        hook._progress(
            JobEvent(kind="progress", id=number, module=module, version="1", kernel=K, phase=sentence, fraction=0.9)
        )
        hook._progress(Event("JobProgress", (number, 0.9, sentence), number, module, "1", K, sentence, 0.9))
    assert capsys.readouterr().out == f"==> {sentence}\n"


def test_only_a_job_that_waits_waits() -> None:
    event = JobEvent(kind="progress", id=1, module="x", version="1", kernel=K, phase="make")
    assert text.waiting(event) == "" and text.waiting(event.model_copy(update={"phase": "waiting for y"}))
