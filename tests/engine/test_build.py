# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds with real headers and a real compiler in a root: what works, and what fails and says why."""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from bed.kernels import Kernels
from bed.overlay import Overlay
from builds import CODE, Bench, bench, k2, system

from kmodhookd.act import install, registry
from kmodhookd.act.build import BuildFailed, build, store_built
from kmodhookd.act.depmod import depmod
from kmodhookd.act.jobserver import JobServer
from kmodhookd.model import FailureClass, Kernel
from kmodhookd.observe import families
from kmodhookd.observe.elf import read_module

pytestmark = pytest.mark.engine

__all__ = ["bench", "k2", "system"]  # fixtures


# --- what works -----------------------------------------------------------------------------------------------------


def test_from_source_to_modules_dep(bench: Bench, k2: Kernel) -> None:
    source = bench.source("whole")
    recipe = bench.recipe("whole", k2)
    phases: list[str] = []
    with JobServer() as server:
        built = build(
            *(bench.root, bench.settings, k2, source, recipe),
            jobserver=server,
            cancel=threading.Event(),
            progress=lambda phase, _: phases.append(phase),
        )
    log = store_built(bench.root, bench.settings, source, recipe, built)
    assert not bench.workspaces()
    assert {"prepare", "make", "check"} <= set(phases)
    text = bench.root.resolve(log).read_text()
    assert text.startswith("DKMS (kmodhookd-") and f"make.log for whole/1 for kernel {k2.release} (x86_64)" in text
    assert "# exit code: 0\n# elapsed time: " in text and "namespaces" in text
    record = install.install(bench.root, bench.settings, families.detect(bench.root), k2, recipe, None)
    depmod(bench.root, k2.release)
    tree = bench.root.resolve(k2.tree)
    assert "updates/dkms/tiny_whole.ko:" in (tree / "modules.dep").read_text()
    assert read_module(bench.root.resolve(record.files[0].path)).release == k2.release


def test_a_build_that_is_done_again_gives_the_same(bench: Bench, k2: Kernel) -> None:
    """The compiler writes down where it was: a directory that is called otherwise each time makes another module."""
    code = CODE.replace("{ return 0; }", "{ pr_info(__FILE__); return 0; }", 1)
    source, recipe = bench.source("again", **{"tiny.c": code}), bench.recipe("again", k2)
    made = []
    for _ in range(2):
        built = bench.build(source, recipe, k2)
        made.append([path.read_bytes() for path in built.files if path.name.startswith("tiny")])
        store_built(bench.root, bench.settings, source, recipe, built)
    assert made[0] == made[1] and len(made[0]) == 1


def test_real_dkms_sees_it_as_its_own(bench: Bench, k2: Kernel, system: Overlay) -> None:
    source = bench.source("shared", **{"dkms.conf": _conf("shared")})
    registry.add(bench.root, bench.settings, source)
    recipe = bench.recipe("shared", k2)
    store_built(bench.root, bench.settings, source, recipe, bench.build(source, recipe, k2))
    install.install(bench.root, bench.settings, families.detect(bench.root), k2, recipe, None)
    said = _chroot(system, "dkms", "status", "-m", "shared")
    assert said.strip() == f"shared/1, {k2.release}, x86_64: installed"
    _chroot(system, "dkms", "remove", "shared/1", "--all")
    assert not (bench.root.resolve(k2.tree) / "updates/dkms/tiny_shared.ko").exists()


def _conf(name: str) -> str:
    return (
        f'PACKAGE_NAME="{name}"\nPACKAGE_VERSION="1"\nBUILT_MODULE_NAME[0]="tiny"\n'
        f'DEST_MODULE_NAME[0]="tiny_{name}"\nDEST_MODULE_LOCATION[0]="/updates/dkms"\nAUTOINSTALL="yes"\n'
    )


def _chroot(overlay: Overlay, *argv: str) -> str:
    done = subprocess.run(["chroot", str(overlay.root), *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_source_for_two_kernels_at_once(bench: Bench, kernels: Kernels, k2: Kernel) -> None:
    """Real DKMS fails here, or stores one kernel's module as the other's."""
    source = bench.source("both")
    others = [k2, bench.kernel(kernels.cloud2.release)]
    with JobServer(2) as server, ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            jobs = [pool.submit(bench.build, source, bench.recipe("both", one), one, server) for one in others]
            for kernel, job in zip(others, jobs, strict=True):
                built = job.result()
                assert read_module(built.files[0]).release == kernel.release
                built.workspace.remove()


def test_patches_and_scripts(bench: Bench, k2: Kernel) -> None:
    last = 'MODULE_DESCRIPTION("x"); MODULE_LICENSE("GPL");'
    patch = f"--- a/tiny.c\n+++ b/tiny.c\n@@ -5,1 +5,1 @@\n-{last}\n+MODULE_VERSION(MARK); {last}\n"
    source = bench.source(
        "parts",
        **{
            "patches/one.patch": patch,
            "pre.sh": '#!/bin/sh\necho "#define MARK \\"$1-$kernelver-$module-$module_version-$arch\\"" > mark.h\n'
            "sed -i '1i #include \"mark.h\"' tiny.c\n",
            "post.sh": "#!/bin/sh\necho it was $module in $PWD\n",
        },
    )
    recipe = bench.recipe("parts", k2, patches=("one.patch",), pre_build="pre.sh a", post_build="post.sh")
    built = bench.build(source, recipe, k2)
    assert read_module(built.files[0]).version == f"a-{k2.release}-parts-1-x86_64"
    log = built.log.read_text()
    assert (
        log.index("Applying patch one.patch")
        < log.index("Running the pre_build script")
        < log.index("Building module(s)")
    )
    assert "it was parts in " in log
    built.workspace.remove()


def test_an_administrator_s_patches_and_script(bench: Bench, k2: Kernel) -> None:
    etc = bench.root.prefix / "etc/dkms/overlaid"
    (etc / "patches").mkdir(parents=True)
    (etc / "patches/x.patch").write_text(
        '--- a/mark.h\n+++ b/mark.h\n@@ -1 +1 @@\n-#define MARK "theirs"\n+#define MARK "mine"\n'
    )
    source = bench.source(
        "overlaid",
        **{
            "mark.h": '#define MARK "theirs"\n',
            "tiny.c": '#include "mark.h"\n' + CODE + "MODULE_VERSION(MARK);\n",
            "patches/x.patch": "not a patch",
        },
    )
    built = bench.build(source, bench.recipe("overlaid", k2, patches=("x.patch",)), k2)
    assert read_module(built.files[0]).version == "mine"
    built.workspace.remove()


# --- what does not --------------------------------------------------------------------------------------------------


def test_a_source_that_does_not_compile(bench: Bench, k2: Kernel) -> None:
    failure = bench.fails("uncompilable", k2, files={"tiny.c": CODE + "int f(void) { return no_such_thing(); }\n"})
    assert failure.cause is FailureClass.SOURCE
    assert failure.line.startswith("tiny.c:6:") and "no_such_thing" in failure.line
    assert "no_such_thing" in bench.root.resolve(failure.log).read_text()


def test_a_symbol_that_the_kernel_lacks(bench: Bench, k2: Kernel) -> None:
    code = CODE.replace("{ return 0; }", "{ extern int nowhere(void); return nowhere(); }")
    failure = bench.fails("unlinkable", k2, files={"tiny.c": code})
    assert failure.cause is FailureClass.SOURCE and '"nowhere"' in failure.line


@pytest.mark.parametrize(
    ("name", "recipe", "files", "cause"),
    [
        ("p1", {"patches": ("no.patch",)}, {}, FailureClass.PATCH),
        ("p2", {"patches": ("../x",)}, {"x": "x"}, FailureClass.PATCH),
        (
            "p3",
            {"patches": ("bad.patch",)},
            {"patches/bad.patch": "--- a/tiny.c\n+++ b/tiny.c\n@@ -1 +1 @@\n-x\n+y\n"},
            FailureClass.PATCH,
        ),
        ("s1", {"pre_build": "pre"}, {"pre": "#!/bin/sh\nexit 77\n"}, FailureClass.SCRIPT),
        ("s2", {"post_build": "post"}, {"post": "#!/bin/sh\nexit 1\n"}, FailureClass.SCRIPT),
        ("m1", {"make": "make nothing"}, {}, FailureClass.SOURCE),
        ("m2", {"make": "true"}, {}, FailureClass.PRODUCT),
    ],
)
def test_what_fails_is_classed(
    bench: Bench, k2: Kernel, name: str, recipe: dict[str, object], files: dict[str, str], cause: FailureClass
) -> None:
    failure = bench.fails(name, k2, files=files, recipe=recipe)
    assert failure.cause is cause and failure.reason


def test_a_root_without_a_compiler(bench: Bench, k2: Kernel, base_root: Overlay) -> None:
    poor = Bench(base_root)
    headers = poor.root.prefix / "usr/lib/modules" / k2.release / "build/include/config"
    headers.mkdir(parents=True)
    failure = poor.fails("any", k2, files={})
    assert failure.cause is FailureClass.COMPILER
    assert failure.reason == f"no compiler in {poor.root.prefix}"


@pytest.mark.parametrize(
    ("size", "make", "says"),
    [
        ("64k", "", "0 MiB are free for builds, 64 MiB are needed"),
        ("100m", "head -c 80M /dev/zero > big; sleep 600", "the build was about to fill the disk"),
    ],
    ids=["before", "in the build"],
)
def test_a_full_disk(bench: Bench, k2: Kernel, size: str, make: str, says: str) -> None:
    """Real DKMS ends with 0 and stores a truncated module."""
    name = f"full-{size}"
    source = bench.source(name)
    place = bench.root.prefix / "var/cache/kmodhookd/build"
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
    try:
        with pytest.raises(BuildFailed, match=says) as caught:
            bench.build(source, bench.recipe(name, k2, make=make), k2)
    finally:
        subprocess.run(["umount", place], check=True)
    assert caught.value.failure.cause is FailureClass.SPACE


def test_a_full_disk_while_it_is_stored(bench: Bench, k2: Kernel) -> None:
    source = bench.source("unstorable")
    recipe = bench.recipe("unstorable", k2)
    built = bench.build(source, recipe, k2)
    place = bench.root.prefix / "var/lib/dkms/unstorable"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", place], check=True)
    try:
        (place / "filler").write_bytes(b"x" * 12_288)
        with pytest.raises(BuildFailed) as caught:
            store_built(bench.root, bench.settings, source, recipe, built)
        left = sorted(path.name for path in place.rglob("*") if path.is_file())
    finally:
        subprocess.run(["umount", place], check=True)
    assert caught.value.failure.cause is FailureClass.SPACE
    assert left == ["filler"]
