# SPDX-License-Identifier: GPL-2.0-or-later
"""framework.conf as real DKMS reads it, beside our reading of the same files: equal, statically and by Bash."""

import shutil
from collections.abc import Iterator

import pytest
from bed import roots
from bed.overlay import Overlay
from dkmsoracle import DKMS, LATER_DKMS, put_later_dkms

from kmodhookd.observe import framework
from kmodhookd.root import Root

pytestmark = pytest.mark.engine

NONSIGNING = (*framework.TREES, "tmp_location", *framework.FLAGS)  # all that 3.0 knows
KNOWN = {DKMS: NONSIGNING, LATER_DKMS: (*NONSIGNING, *framework.OPTIONS, "parallel_jobs", "post_transaction")}
KERNELS = ("6.1.0-1-amd64", "6.1.0-2-cloud-amd64")
# The functions are DKMS's own; its main program is cut off. Prints NAME VALUE pairs, then those of each kernel.
READER = r"""
. <(sed '/^#### Program Starts Here/,$d' "$1")
names=$2
shift 2
dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules tmp_location=/tmp verbose= symlink_modules=
read_framework_conf $dkms_framework_nonsigning_variables >/dev/null 2>&1
for name in $names; do printf '%s\0%s\0' "$name" "${!name}"; done
for kernelver; do
    (
        arch=x86_64
        read_framework_conf $dkms_framework_signing_variables >/dev/null 2>&1
        for name in $dkms_framework_signing_variables; do printf '%s\0%s\0' "$name" "${!name}"; done
    )
done
"""
CASES: dict[str, dict[str, str]] = {
    "comments": {"": '# dkms_tree="/x"\n'},
    "plain": {
        "": 'dkms_tree="/srv/dkms"\nsource_tree=/srv/src\nverbose="1"\nsymlink_modules=\'yes\'\n',
        "x": "install_tree=/usr/lib/modules\n",
    },
    "blanks": {"": 'sign_file="/a   b  c"\ntmp_location="  /var/tmp "\nverbose=" "\n'},
    "drop-ins": {
        "": "dkms_tree=/a\nverbose=1\nhelper=x\n",
        "20-b": "dkms_tree=$dkms_tree/b\nunset verbose\n",
        "10-a": "dkms_tree=$dkms_tree/a$helper\nsource_tree=$dkms_tree\n",
    },
    "twice evaluated": {"": "tmp_location='$dkms_tree/tmp'\nsign_file='$source_tree/$kernelver'\n"},
    "for each kernel": {
        "": 'mok_signing_key="/k/$kernelver.$arch"\nmok_certificate="/c/${kernelver%%-*}"\n',
        "x": "[[ $kernelver == *cloud* ]] && sign_file=/cloud || sign_file=/other\n",
    },
    "conditions": {"": 'if [ "$install_tree" = /lib/modules ]; then modprobe_on_install=true; else verbose=1; fi\n'},
    "quotes": {"": 'autoinstall_all_kernels="it\'s"\nsign_file=pkcs11:a\\;b\n'},
    "bash": {
        "": "dkms_tree=$(echo /srv/$(echo x))\nfor i in 1 2; do verbose=$i; done\nsign_file=$(printf '/%s' $kernelver)\n"
    },
    "bash in one": {
        "": "source_tree=/a\n",
        "x": "f() { echo /f; }\ninstall_tree=$(f)\n",
        "y": "verbose=${install_tree}\n",
    },
    "later ones": {
        "": "compress_gzip_opts=-9\nparallel_jobs=$(( 1 + 2 ))\n",
        "x": 'compress_zstd_opts="-q  -19"\npost_transaction="/usr/bin/true $dkms_tree"\n',
    },
    "array": {"": "dkms_tree=(/a /b)\nverbose[1]=x\n"},
}


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    """A root with real DKMS, two of them."""
    with roots.overlay("engine", label="framework") as engine:
        put_later_dkms(engine)
        yield engine


def put(overlay: Overlay, files: dict[str, str]) -> None:
    """`""` is framework.conf, the others are drop-ins."""
    directory = overlay.path("/etc/dkms/framework.conf.d")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, text in files.items():
        path = directory / f"{name}.conf" if name else overlay.path("/etc/dkms/framework.conf")
        path.write_text(text, newline="")


def real(overlay: Overlay, dkms: str) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    argv = ["bash", "-c", READER, "reader", dkms, " ".join(KNOWN[dkms]), *KERNELS]
    fields = overlay.run(argv).stdout.split("\0")[:-1]
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    count = len(KNOWN[dkms])
    signing = [tuple(value for _, value in pairs[count + 3 * n : count + 3 * n + 3]) for n in range(len(KERNELS))]
    return dict(pairs[:count]), signing


@pytest.mark.parametrize("dkms", KNOWN)
@pytest.mark.parametrize("case", CASES)
def test_it_is_read_as_dkms_reads_it(overlay: Overlay, case: str, dkms: str) -> None:
    put(overlay, CASES[case])
    root = Root(overlay.root)
    nonsigning, signing = real(overlay, dkms)
    variables = {"dkms_tree": "/var/lib/dkms", "source_tree": "/usr/src", "install_tree": "/lib/modules"}
    variables |= {"tmp_location": "/tmp", "verbose": "", "symlink_modules": ""}
    problems: list[str] = []
    paths = framework.framework_files(root)
    said = framework._evaluate(root, paths, variables, KNOWN[dkms], problems, "auto") if paths else {}
    assert {name: said.get(name) or variables.get(name, "") for name in KNOWN[dkms]} == nonsigning
    settings = framework.load(root)
    assert [framework.signing_values(root, settings, kernel, "x86_64") for kernel in KERNELS] == signing
    assert not problems
