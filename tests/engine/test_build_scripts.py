# SPDX-License-Identifier: GPL-2.0-or-later
"""What PRE_BUILD, MAKE and POST_BUILD may rely on: variables, environment, and a DKMS tree that they may write into."""

import stat
from collections.abc import Iterator

import pytest
from bed.overlay import Overlay
from builds import CODE, Bench, bench, k2, system

from kmodhookd import confine
from kmodhookd.act import registry
from kmodhookd.act.stored import Built, store_built
from kmodhookd.model import FailureClass, Kernel, Recipe, Source
from kmodhookd.observe import dkmstree, framework, inventory
from kmodhookd.observe.elf import read_module
from kmodhookd.settings import Dkms, Invocation, Settings

pytestmark = pytest.mark.engine

__all__ = ["bench", "k2", "system"]  # fixtures

# The way of zfs: PRE_BUILD configures in the build directory, POST_BUILD is told where DKMS's tree is and copies symbols
# and a configuration header out of `build` into the kernel's directory, for what is built upon it.
CONFIGURE = '#!/bin/sh\necho "#define CONFIGURED \\"$*\\"" > config.h\n'
POSTBUILD = """#!/bin/sh
while getopts "a:k:n:t:v:" option; do
    case $option in
        a) arch=$OPTARG ;; k) kernel=$OPTARG ;; n) name=$OPTARG ;; t) tree=$OPTARG ;; v) version=$OPTARG ;;
    esac
done
exec cp "$tree/$name/$version/build/config.h" "$tree/$name/$version/build/Module.symvers" "$tree/$name/$version/$kernel/$arch/"
"""
MECHANISMS = ["namespaces", "setuid"]


@pytest.fixture(params=MECHANISMS)
def cage(request: pytest.FixtureRequest, bench: Bench) -> Iterator[str]:
    """One that can mount, and one that cannot."""
    bench.sandbox = request.param
    yield request.param
    bench.sandbox = confine.AUTO


def registered(bench: Bench, name: str, **files: str) -> Source:
    source = bench.source(name, **files)
    registry.add(bench.root, bench.settings, source)
    return source


def built(bench: Bench, source: Source, recipe: Recipe, kernel: Kernel, settings: Settings | None = None) -> Built:
    bench.settings = settings or Settings()
    try:
        return bench.build(source, recipe, kernel)
    finally:
        bench.settings = Settings()


def stored(bench: Bench, recipe: Recipe) -> dict[str, str]:
    """The files of the kernel's directory in DKMS's tree, by name; the modules themselves without content."""
    top = bench.root.resolve(f"/var/lib/dkms/{recipe.module}/1/{recipe.kernel}/{recipe.arch}")
    files = {str(path.relative_to(top)): path for path in sorted(top.rglob("*")) if path.is_file()}
    return {name: "" if ".ko" in name else path.read_text() for name, path in files.items()}


# --- DKMS's tree --------------------------------------------------------------------------------------------------


def test_a_post_build_that_writes_into_dkms_s_tree(bench: Bench, k2: Kernel, cage: str) -> None:
    """As zfs does; and what is built upon it finds it there."""
    name = f"zfslike-{cage}"
    source = registered(bench, name, **{"configure": CONFIGURE, "scripts/postbuild": POSTBUILD})
    recipe = bench.recipe(
        *(name, k2),
        pre_build="configure --with-linux=$( if true; then echo ${kernel_source_dir/%build/source}; fi ) --x",
        post_build=f"scripts/postbuild -n {name} -v 1 -a x86_64 -k {k2.release} -t /var/lib/dkms ",
    )
    done = built(bench, source, recipe, k2)
    assert done.mechanism == cage
    store_built(bench.root, bench.settings, source, recipe, done)
    kept = stored(bench, recipe)
    header = f'#define CONFIGURED "--with-linux={k2.tree}/source --x"\n'
    assert kept.keys() == {
        "Module.symvers",
        "config.h",
        "log/make.log",
        f"module/tiny_{name}.ko",
        "module/Module.symvers",
    }
    assert kept["config.h"] == header
    version = dkmstree.read(bench.root, bench.settings).versions[name, "1"]
    assert [path.rpartition("/")[2] for path in version.built[k2.release, "x86_64"]] == [f"tiny_{name}.ko"]
    upon = registered(
        bench, f"upon-{cage}", **{"tiny.c": '#include "config.h"\n' + CODE + "MODULE_VERSION(CONFIGURED);\n"}
    )
    tree = f"$dkms_tree/{name}/1/$kernelver/$arch"
    make = f"make -C $kernel_source_dir M=$dkms_tree/upon-{cage}/1/build ccflags-y=-I{tree} modules"
    second = built(bench, upon, bench.recipe(f"upon-{cage}", k2, make=make), k2)
    assert read_module(second.files[0]).version == f"--with-linux={k2.tree}/source --x"
    second.workspace.remove()


def test_post_build_sees_the_modules_in_the_tree(bench: Bench, k2: Kernel, cage: str) -> None:
    """And writes beside them; what it does to them itself changes nothing."""
    name = f"sees-{cage}"
    post = (
        f"#!/bin/sh -e\ncd $1/{name}/1/{k2.release}/x86_64/module\nmodinfo ./tiny_{name}.ko > info || :\nls > list\n"
        f"echo own > Module.symvers\necho broken > tiny_{name}.ko\nmkdir -p ../include/a\necho h > ../include/a/b.h\n"
    )
    source = registered(bench, name, **{"post.sh": post})
    recipe = bench.recipe(name, k2, post_build="post.sh $dkms_tree")
    store_built(bench.root, bench.settings, source, recipe, built(bench, source, recipe, k2))
    kept = stored(bench, recipe)
    assert kept["module/list"].split() == ["Module.symvers", "info", "list", f"tiny_{name}.ko"]
    assert kept["module/Module.symvers"] == "own\n" and kept["include/a/b.h"] == "h\n"
    module = bench.root.resolve(f"/var/lib/dkms/{name}/1/{k2.release}/x86_64/module/tiny_{name}.ko")
    assert read_module(module).release == k2.release


def test_the_next_build_forgets_what_the_last_one_left(bench: Bench, k2: Kernel) -> None:
    post = "#!/bin/sh\necho x > $2/again/1/$kernelver/$arch/$1\n"
    source = registered(bench, "again", **{"post.sh": post})
    for name in ("first", "second"):
        recipe = bench.recipe("again", k2, post_build=f"post.sh {name} $dkms_tree")
        store_built(bench.root, bench.settings, source, recipe, built(bench, source, recipe, k2))
        assert {"first", "second"} & stored(bench, recipe).keys() == {name}


HOSTILE = """#!/bin/sh
cd $1/{name}/1/{kernel}/x86_64 || exit 1
mkfifo fifo; ln -s /etc/shadow link; ln /etc/passwd hard; touch -- -dash .hidden 'a b' "$(printf 'x\\ny')"
mkdir -p a/b/c/d/e/f/g/h log other; touch a/b/c/d/e/f/g/h/deep log/make.log other/good
ln -s /etc ../../kernel-link; touch ../outside ../../outside ../../../outside; rm -rf module; ln -s /etc module
true
"""


def test_a_hostile_post_build_leaves_nothing_odd(bench: Bench, k2: Kernel, cage: str) -> None:
    name = f"hostilepost-{cage}"
    source = registered(bench, name, **{"post.sh": HOSTILE.format(name=name, kernel=k2.release)})
    recipe = bench.recipe(name, k2, post_build="post.sh $dkms_tree")
    top = bench.root.resolve(f"/var/lib/dkms/{name}/1")
    before = [path.name for path in top.iterdir()]
    done = built(bench, source, recipe, k2)
    log = done.log.read_text()
    store_built(bench.root, bench.settings, source, recipe, done)
    kept = stored(bench, recipe)
    assert kept.keys() == {"log/make.log", f"module/tiny_{name}.ko", "module/Module.symvers", "other/good"}
    assert "fifo is not a regular file" in log and "link is a link" in log and "'a b' is no name" in log
    assert {path.name for path in top.iterdir()} == {*before, k2.release} - {"build"}  # DKMS's own goes after a success
    assert all(path.stat().st_uid == 0 and not path.is_symlink() for path in (top / k2.release).rglob("*"))


def test_a_build_that_puts_a_link_where_its_modules_are_shown(bench: Bench, k2: Kernel, cage: str) -> None:
    """Showing the modules is done by root: it must not be led anywhere."""
    name = f"leads-{cage}"
    victim = bench.root.prefix / f"srv/{name}"
    victim.mkdir(parents=True)
    victim.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    pre = f"#!/bin/sh\nln -s /srv/{name} $1/{name}/1/{k2.release}/x86_64/module\n"
    source = registered(bench, name, **{"pre.sh": pre, "post.sh": "#!/bin/sh\n"})
    recipe = bench.recipe(name, k2, pre_build="pre.sh $dkms_tree", post_build="post.sh")
    failure = bench.fails_with(source, recipe, k2)
    assert failure.cause is not FailureClass.SPACE
    assert list(victim.iterdir()) == []


# --- variables and environment ----------------------------------------------------------------------------------------

SHOW = (
    "printf '%s|' $kernelver $arch $module $module_version $PACKAGE_NAME $source_tree $install_tree $kernel_source_dir "
    "${kernel_config##*/} $CC $KERNEL_CC > make.txt; sh -c 'echo $kernelver $arch $module $module_version $CC "
    "[$source_tree$dkms_tree]' > env.txt; make -C $kernel_source_dir M=$PWD"
)


def test_variables_and_environment_of_make(bench: Bench, k2: Kernel) -> None:
    """Variables of DKMS's own are there for the command, and only four of them, and the compiler, for what it starts."""
    source = bench.source("seen")
    done = built(bench, source, bench.recipe("seen", k2, make=SHOW), k2)
    cell = [k2.release, "x86_64", "seen", "1"]
    compiler = (done.workspace.build / "env.txt").read_text().split()[4]
    expected = [*cell, "seen", "/usr/src", "/usr/lib/modules", f"{k2.tree}/build", "auto.conf", compiler, compiler]
    assert (done.workspace.build / "make.txt").read_text().split("|")[:-1] == expected
    assert (done.workspace.build / "env.txt").read_text().split() == [*cell, compiler, "[]"]
    done.workspace.remove()


def test_what_one_call_asks_for(bench: Bench, k2: Kernel) -> None:
    """--directive is exported too, --kernelsourcedir and --config are what the command sees."""
    bench.root.resolve("/srv").mkdir(exist_ok=True)
    (bench.root.resolve("/srv") / "headers").symlink_to(k2.headers.directory)
    (bench.root.resolve("/srv") / "kconfig").touch()
    asked = Invocation(
        directives=("FOO=a b", "broken", "1x=y"), kernel_source_dir="/srv/headers", kernel_config="/srv/kconfig"
    )
    other = k2.model_copy(update={"headers": k2.headers.model_copy(update={"directory": "/srv/headers"})})
    make = "echo $kernel_config > seen.txt; sh -c 'echo $FOO' >> seen.txt; make -C $kernel_source_dir M=$PWD"
    source = bench.source("asked")
    done = built(bench, source, bench.recipe("asked", k2, make=make), other, Settings(invocation=asked))
    assert (done.workspace.build / "seen.txt").read_text() == "/srv/kconfig\na b\n"
    done.workspace.remove()


def test_build_environment(bench: Bench, k2: Kernel) -> None:
    """What it exports is seen by everything that is run, and the file may be root's alone."""
    file = bench.root.prefix / "etc/dkms/build-env"
    file.parent.mkdir(exist_ok=True)
    file.write_text('export MARK="of $kernelver"\nHELPER=1\n')
    file.chmod(0o600)
    show = '#!/bin/sh\necho "$0 $MARK$HELPER" >> seen.txt\n'
    source = bench.source("env", **{"pre.sh": show, "post.sh": show})
    make = "echo make $MARK$HELPER >> seen.txt; make -C $kernel_source_dir M=$PWD"
    recipe = bench.recipe("env", k2, pre_build="pre.sh", post_build="post.sh", make=make)
    done = built(bench, source, recipe, k2, Settings(dkms=Dkms(build_environment="/etc/dkms/build-env")))
    here = done.workspace.build_inside
    mark = f"of {k2.release}"
    assert (done.workspace.build / "seen.txt").read_text().splitlines() == [
        f"{here}/pre.sh {mark}",
        f"make {mark}1",
        f"{here}/post.sh {mark}",
    ]
    done.workspace.remove()


def test_tmp_location_is_private(bench: Bench, k2: Kernel) -> None:
    place = bench.root.prefix / "srv/tmp"
    place.mkdir(parents=True)
    (place / "theirs").write_text("x")
    make = "(ls -A $tmp_location; echo $tmp_location) > seen.txt; touch $tmp_location/mine; make -C $kernel_source_dir M=$PWD"
    source = bench.source("tmp")
    done = built(bench, source, bench.recipe("tmp", k2, make=make), k2, Settings(dkms=Dkms(tmp_location="/srv/tmp")))
    assert (done.workspace.build / "seen.txt").read_text() == "/srv/tmp\n"
    assert [path.name for path in place.iterdir()] == ["theirs"]
    done.workspace.remove()


def test_an_administrator_s_script_takes_a_package_s_place(bench: Bench, k2: Kernel) -> None:
    directory = bench.root.prefix / "etc/dkms/replaced"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pre.sh").write_text('#!/bin/sh\necho "mine $1 $PWD" > "$OLDPWD/seen.txt"\n')
    (directory / "post.sh").write_text("#!/bin/sh\nfalse\n")  # not executable: the package's own is taken
    (directory / "pre.sh").chmod(0o755)
    source = bench.source("replaced", **{"pre.sh": "#!/bin/sh\nexit 1\n", "post.sh": "#!/bin/sh\nexit 0\n"})
    done = built(bench, source, bench.recipe("replaced", k2, pre_build="pre.sh a", post_build="post.sh"), k2)
    assert (done.workspace.build / "seen.txt").read_text() == "mine a /etc/dkms/replaced\n"
    done.workspace.remove()


@pytest.mark.parametrize(("options", "works"), [("-0 --check=crc32", True), ("--no-such-option", False)])
def test_a_compressor_s_options(bench: Bench, k2: Kernel, system: Overlay, options: str, works: bool) -> None:
    """Real DKMS keeps a plain module where the compressor fails, and says nothing."""
    kernel = k2.model_copy(update={"compression": "xz"})
    name = f"packed-{works}".lower()
    source, recipe = bench.source(name), bench.recipe(name, k2)
    settings = Settings(dkms=Dkms(compress_xz_opts=options))
    if works:
        done = built(bench, source, recipe, kernel, settings)
        assert [path.name for path in done.files] == [f"tiny_{name}.ko.xz", "Module.symvers"]
        done.workspace.remove()
    else:
        bench.settings = settings
        failure = bench.fails_with(source, recipe, kernel)
        bench.settings = Settings()
        assert failure.cause is FailureClass.PRODUCT and "compress_xz_opts" in failure.remedy


# --- looking ----------------------------------------------------------------------------------------------------------


def test_looking_runs_no_package_code_as_root(bench: Bench, k2: Kernel) -> None:
    """Neither dkms.conf nor framework.conf, where they need Bash; and they cannot even write where everybody may."""
    place = bench.root.prefix / "srv/open"
    place.mkdir(parents=True)
    place.chmod(0o777)
    conf = 'PACKAGE_NAME=looked\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION=/extra\nid -u >> /srv/open/ran\nMAKE="make U=$(id -u)"\n'
    bench.source("looked", **{"dkms.conf": conf})
    main = bench.root.prefix / "etc/dkms/framework.conf"
    theirs = main.read_bytes()
    main.write_text("id -u >> /srv/open/ran\nparallel_jobs=$(id -u | cut -c1-2)\n")
    try:
        settings = framework.load(bench.root)
        seen = inventory.look(bench.root, settings)
    finally:
        main.write_bytes(theirs)
    (made,) = (one.recipe for one in seen.placements if (one.module, one.kernel) == ("looked", k2.release))
    assert made is not None and made.make.startswith("make U=")
    assert int(made.make.removeprefix("make U=")) not in confine.FORBIDDEN_UIDS  # whichever build user was free
    assert settings.dkms.parallel_jobs > 0
    assert list(place.iterdir()) == []
