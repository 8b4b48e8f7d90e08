# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny sources, each with something that dkms.conf allows and few packages do.

What a build was told shows in its module: the text MARK, which the Makefile passes on, is an entry of .modinfo. What the
scripts that run as root were told goes into LOG.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bed.overlay import Overlay
from bed.wanted import write_source

VERSION = "1.0"
VERBS = ("install", "uninstall", "remove")
LOG = "/var/log/odd"

_CODE = """#include <linux/module.h>
#ifndef MARK
#define MARK "none"
#endif
MODULE_INFO(mark, MARK);
MODULE_DESCRIPTION("odd");
MODULE_LICENSE("GPL");
"""
_MAKEFILE = """obj-m := {name}.o
ifdef MARK
ccflags-y += -DMARK='"$(MARK)"'
endif
"""
_MARKED = "MARK := {mark}\n" + _MAKEFILE
_ORIGIN = "$(origin KERNELRELEASE)"
_ENVIRONMENT = "$(module)-$(module_version)-$(kernelver)-$(arch)"
_CONF = """PACKAGE_NAME="{name}"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="{name}"
DEST_MODULE_LOCATION[0]="/updates"
AUTOINSTALL="yes"
"""
# DKMS's own command is this, and packages write it out.
_MAKE = "make -C $kernel_source_dir M=$dkms_tree/$module/$module_version/build"
_QUOTED_MAKE = "'make'" + _MAKE.removeprefix("make")
_SAY = '#!/bin/sh\necho "$0 $* | $module $module_version $kernelver $arch | $PWD" >>/var/log/odd/{name}\n'


@dataclass(frozen=True)
class Odd:
    """A source `NAME-1.0`. `conf` follows the plain lines (or is all there is, when it names the package itself)."""

    name: str
    conf: str = ""
    files: Mapping[str, str] = field(default_factory=dict)  # beside NAME.c, Makefile and dkms.conf, or in their place
    etc: Mapping[str, str] = field(default_factory=dict)  # below /etc/dkms
    builds: bool = True  # with DKMS
    verbs: tuple[str, ...] = ("install", "remove")  # that are tried
    meant: str = ""  # why another thing comes out with ours on purpose

    def __str__(self) -> str:
        return self.name

    def put(self, root: Overlay, kernel: str) -> None:
        """Into /usr/src, scripts executable; `KERNEL` in the name of a file of /etc/dkms is this kernel's release."""
        conf = self.conf if "PACKAGE_NAME" in self.conf else _CONF.format(name=self.name) + self.conf
        plain = {f"{self.name}.c": _CODE, "Makefile": _MAKEFILE.format(name=self.name), "dkms.conf": conf}
        files = {**plain, **self.files}
        directory = write_source(root, f"{self.name}-{VERSION}", {})
        for relative, text in files.items():
            _write(directory / relative, text)
        for relative, text in self.etc.items():
            _write(root.path("/etc/dkms") / relative.replace("KERNEL", kernel), text)
        root.path(LOG).mkdir(parents=True, exist_ok=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    path.chmod(0o755 if text.startswith("#!") else 0o644)


def _patch(name: str, mark: str, before: str = "none") -> str:
    """A patch that changes what MARK is where nothing says so."""
    return f"""--- a/{name}.c
+++ b/{name}.c
@@ -1,5 +1,5 @@
 #include <linux/module.h>
 #ifndef MARK
-#define MARK "{before}"
+#define MARK "{mark}"
 #endif
 MODULE_INFO(mark, MARK);
"""


def _two(name: str, more: str = "") -> str:
    """The conf of two modules, NAME_a and NAME_b."""
    lines = [f'PACKAGE_NAME="{name}"', f'PACKAGE_VERSION="{VERSION}"', 'AUTOINSTALL="yes"']
    for index, letter in enumerate("ab"):
        lines += [f'BUILT_MODULE_NAME[{index}]="{name}_{letter}"', f'DEST_MODULE_LOCATION[{index}]="/updates"']
    return "\n".join([*lines, more])


_EXPORTS = """#include <linux/module.h>
int odd_pair_answer(int n);
int odd_pair_answer(int n) { return n + 42; }
EXPORT_SYMBOL_GPL(odd_pair_answer);
MODULE_LICENSE("GPL");
"""
_IMPORTS = """#include <linux/module.h>
#include <linux/moduleparam.h>
int odd_pair_answer(int n);
static int number = 1;
module_param(number, int, 0444);
MODULE_PARM_DESC(number, "a number");
MODULE_ALIAS("odd-pair");
MODULE_ALIAS("pci:v0000ABCDd00001234sv*sd*bc*sc*i*");
MODULE_SOFTDEP("pre: loop");
static int __init start(void) { return odd_pair_answer(number); }
module_init(start);
MODULE_LICENSE("GPL");
"""
_ALL_SCRIPTS = "".join(
    f'{script}="{script.lower()}.sh one two"\n' for script in ("POST_ADD", "PRE_INSTALL", "POST_INSTALL", "POST_REMOVE")
)

ODD = (
    Odd("odd_plain"),
    Odd(
        "odd_match",
        f'MAKE[0]="{_MAKE} MARK=any"\nMAKE[1]="{_MAKE} MARK=six"\nMAKE_MATCH[1]="^6\\."\n'
        f'MAKE[2]="{_MAKE} MARK=five"\nMAKE_MATCH[2]="^5\\."\n',
    ),
    Odd("odd_match_first", f'MAKE[0]="{_MAKE} MARK=five"\nMAKE_MATCH[0]="^5\\."\n'),
    # `KERNELRELEASE=…` is put behind a plain make, and not behind a quoted one.
    Odd("odd_unquoted", f'MAKE="{_MAKE}"\n', {"Makefile": _MARKED.format(name="odd_unquoted", mark=_ORIGIN)}),
    Odd(
        "odd_quoted",
        f'MAKE="{_QUOTED_MAKE}"\n',
        {"Makefile": _MARKED.format(name="odd_quoted", mark=_ORIGIN)},
    ),
    Odd("odd_late", f"MAKE='{_MAKE} MARK=$kernelver-$arch-$module-$module_version'\n"),
    Odd("odd_compiler", f"MAKE='{_MAKE} MARK=CC-\\$CC'\n"),
    Odd("odd_environment", "", {"Makefile": _MARKED.format(name="odd_environment", mark=_ENVIRONMENT)}),
    # A value is evaluated when it is read, once more, and when it is run.
    Odd("odd_here", "MAKE='make -C /lib/modules/$kernelver/build M=\\$PWD MARK=\\${PWD##*/} modules'\n"),
    Odd(
        "odd_several",
        f"MAKE=\"echo 'obj-m := odd_several.o' > Makefile && ({_MAKE} KCFLAGS=-DMARK=__FILE__+0); test -e odd_several.ko\"\n",
        {"Makefile": "$(error it is not to be used)\n", "odd_several.c": _CODE.replace("MARK);", '"late");')},
    ),
    Odd(
        "odd_makefile",
        'MAKE="make all MARK=own"\n',
        {
            "Makefile": "ifneq ($(KERNELVERSION),)\n" + _MAKEFILE.format(name="odd_makefile") + "else\n"
            "all:\n\t$(MAKE) -C /lib/modules/$(KERNELRELEASE)/build M=$(CURDIR) MARK=$(MARK)-$(KERNELRELEASE)\nendif\n"
        },
    ),
    Odd(
        "odd_patched",
        'PATCH[0]="first.patch"\nPATCH[1]="six.patch"\nPATCH_MATCH[1]="^6"\n'
        'PATCH[2]="five.patch"\nPATCH_MATCH[2]="^5"\n',
        {
            "patches/first.patch": _patch("odd_patched", "first"),
            "patches/six.patch": _patch("odd_patched", "six", before="first"),
            "patches/five.patch": _patch("odd_patched", "five", before="six"),
        },
    ),
    Odd(
        "odd_unpatched",
        'PATCH[0]="bad.patch"\n',
        {"patches/bad.patch": _patch("odd_unpatched", "x", before="y")},
        builds=False,
    ),
    Odd(
        "odd_strip",
        _two("odd_strip", 'STRIP[0]="no"\nSTRIP[1]="yes"\n'),
        {"Makefile": "obj-m := odd_strip_a.o odd_strip_b.o\n", "odd_strip_a.c": _CODE, "odd_strip_b.c": _CODE},
    ),
    Odd(
        "odd_pair",
        _two("odd_pair"),
        {"Makefile": "obj-m := odd_pair_a.o odd_pair_b.o\n", "odd_pair_a.c": _EXPORTS, "odd_pair_b.c": _IMPORTS},
        verbs=VERBS,
    ),
    Odd(
        "odd_places",
        'PACKAGE_NAME="odd_places"\nPACKAGE_VERSION="1.0"\nAUTOINSTALL="yes"\n'
        'BUILT_MODULE_NAME[0]="inner"\nBUILT_MODULE_LOCATION[0]="src/one"\nDEST_MODULE_NAME[0]="odd_places_one"\n'
        'DEST_MODULE_LOCATION[0]="/kernel/drivers/odd/"\n'
        'BUILT_MODULE_NAME[1]="inner-two"\nBUILT_MODULE_LOCATION[1]="src/two/"\nDEST_MODULE_NAME[1]="odd-places-two"\n'
        'DEST_MODULE_LOCATION[1]="/extra"\n',
        {
            "Makefile": "obj-m := src/one/ src/two/\n",
            "src/one/Makefile": "obj-m := inner.o\n",
            "src/two/Makefile": "obj-m := inner-two.o\n",
            "src/one/inner.c": _CODE,
            "src/two/inner-two.c": _CODE.replace("none", "two"),
        },
        verbs=VERBS,
    ),
    Odd(
        "odd_default",
        'PACKAGE_NAME="odd_default"\nPACKAGE_VERSION="1.0"\nDEST_MODULE_LOCATION[0]="/updates"\nAUTOINSTALL="yes"\n',
    ),
    Odd(
        "odd_generated",
        'PRE_BUILD="scripts/generate.sh from pre_build"\nPOST_BUILD="scripts/after.sh"\n',
        {
            "odd_generated.c": '#include "mark.h"\n' + _CODE,
            "scripts/generate.sh": '#!/bin/sh\necho "#define MARK \\"$* $kernelver $module ${PWD##*/}\\"" > mark.h\n',
            "scripts/after.sh": "#!/bin/sh\ntest -e Makefile\n",
        },
    ),
    Odd(
        "odd_late_script",
        "PRE_BUILD='generate.sh $kernelver $arch'\n",
        {
            "odd_late_script.c": '#include "mark.h"\n' + _CODE,
            "generate.sh": '#!/bin/sh\necho "#define MARK \\"$#: $*\\"" > mark.h\n',
        },
    ),
    Odd(
        "odd_pre_fails",
        'PRE_BUILD="fail.sh"\n',
        {"fail.sh": "#!/bin/sh\nexit 3\n"},
        meant="as DKMS since 3.1: a PRE_BUILD that fails ends the build",
    ),
    Odd("odd_not_executable", 'PRE_BUILD="not.sh"\nPOST_INSTALL="not.sh"\n', {"not.sh": "exit 3\n"}),
    Odd(
        "odd_scripts",
        _ALL_SCRIPTS,
        {
            f"{script}.sh": _SAY.format(name="odd_scripts")
            for script in ("post_add", "pre_install", "post_install", "post_remove")
        },
        verbs=VERBS,
    ),
    Odd("odd_refuses", 'PRE_INSTALL="refuse.sh"\n', {"refuse.sh": "#!/bin/sh\nexit 1\n"}, builds=False),
    Odd(
        "odd_overridden",
        f'MAKE="{_MAKE} MARK=package"\nSTRIP="yes"\n',
        etc={
            "odd_overridden.conf": f'MAKE="{_MAKE} MARK=$BUILT_MODULE_NAME"\nHELPER=x\nSTRIP[0]=no\n',
            "odd_overridden-1.0.conf": 'DEST_MODULE_NAME[0]="odd_overridden${HELPER}_other"\n',
            "odd_overridden-1.0-KERNEL.conf": 'MAKE="$MAKE-here"\n',
            "odd_overridden-1.0-KERNEL-x86_64.conf": 'MAKE="$MAKE-$arch"\n',
            "odd_overridden-1.0-5.4.0-150-generic.conf": 'MAKE="false"\n',
        },
        verbs=VERBS,
    ),
    Odd("odd_excluded", 'BUILD_EXCLUSIVE_KERNEL="^5\\."\n', builds=False),
    Odd("odd_excluded_arch", 'BUILD_EXCLUSIVE_ARCH="aarch64|ppc"\n', builds=False),
    Odd(
        "odd_included",
        'BUILD_EXCLUSIVE_KERNEL="6\\.[0-9]+"\nBUILD_EXCLUSIVE_ARCH="86"\n'
        'BUILD_EXCLUSIVE_CONFIG="CONFIG_MODULES !CONFIG_NO_SUCH"\n',
    ),
    Odd("odd_excluded_config", 'BUILD_EXCLUSIVE_CONFIG="CONFIG_MODULES !CONFIG_MODVERSIONS"\n', builds=False),
    Odd("odd_deprecated", 'REMAKE_INITRD="yes"\nMODULES_CONF[0]="alias x y"\nCLEAN="rm -f *.o"\n'),
    Odd(
        "odd_computed",
        """
major=${kernelver%%.*}
if [ "$(echo "$kernelver" | cut -d. -f1)" -ge 6 ]; then which=new; else which=old; fi
function word() { echo "f-$1"; }
names=(a b)
for i in 0 1; do
    BUILT_MODULE_NAME[$i]="odd_computed_${names[$i]}"
    DEST_MODULE_LOCATION[$i]="/updates/$which"
done
MAKE="make -C $kernel_source_dir M=$dkms_tree/$module/$module_version/build"
MAKE+=" MARK=$(word $which)-${#names[@]}"
case $arch in x86_64|amd64) MAKE+=-x86 ;; *) MAKE+=-other ;; esac
""",
        {
            "Makefile": "obj-m := odd_computed_a.o odd_computed_b.o\n"
            + _MAKEFILE.format(name="odd_computed").partition("\n")[2],
            "odd_computed_a.c": _CODE,
            "odd_computed_b.c": _CODE,
        },
    ),
    Odd(
        "odd_stale",
        "",
        {"odd_stale.o": "not an object\n", "odd_stale.ko": "not a module\n", "odd_stale.mod.c": "no C\n"},
    ),
    Odd(
        "odd_hidden",
        "",
        {
            ".hidden/mark.h": '#define MARK "hidden"\n',
            "odd_hidden.c": '#include ".hidden/mark.h"\n' + _CODE,
            "empty/.keep": "",
            "space in name.txt": "x",
        },
    ),
    Odd("odd_broken", "", {"odd_broken.c": _CODE + "#error no\n"}, builds=False),
    Odd("odd_elsewhere", 'MAKE="true"\n', builds=False),
    Odd("odd_bad_location", 'DEST_MODULE_LOCATION[0]="/lib"\n', builds=False),
    Odd(
        "odd_no_location",
        'PACKAGE_NAME="odd_no_location"\nPACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME="odd_no_location"\n',
        builds=False,
    ),
    Odd("odd_suffix", 'BUILT_MODULE_NAME[0]="odd_suffix.ko"\n', builds=False),
)
