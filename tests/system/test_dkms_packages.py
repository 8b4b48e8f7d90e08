# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's -dkms packages through apt, their maintainer scripts untouched: beside real DKMS, then in its place."""

import pytest
from bed import installed, repack, sources, wanted
from bed.kernels import Kernel, Kernels
from bed.machine import Machine
from bed.repack import Successor
from bed.shell import APT_ENV

pytestmark = pytest.mark.system

PACKAGE, OTHER = "bbswitch-dkms", "acpi-call-dkms"
NAME, OLD = "bbswitch", "0.8"
MODULES = ["acpi_call", NAME]
SWITCH = "/etc/dkms/no-autoinstall"
MARK = "# made by kmodhookd: it keeps DKMS's own automatic builds off"
# Says what can be seen while another package is unpacked and not configured.
WITNESS = f"""
{{
    dpkg-query -W -f '${{db:Status-Status}} ${{Version}}\\n' {PACKAGE}
    find /usr/lib/modules -name '{NAME}.ko'
    echo "status: $(dkms status -m {NAME})"
}} >/root/seen 2>&1
"""


def version(machine: Machine, kernel: Kernel, module: str = NAME) -> str:
    """Which successor a kernel's module is of."""
    return machine.run(["modinfo", "-k", kernel.release, "-F", "bed", module]).stdout.strip()


def file(kernel: Kernel, module: str = NAME) -> str:
    return f"/usr/lib/modules/{kernel.release}/updates/dkms/{module}.ko"


def status(machine: Machine, module: str = NAME) -> list[str]:
    """What the dkms that is there says, ours or the real one."""
    return machine.run(["dkms", "status", "-m", module]).stdout.splitlines()


def builds(machine: Machine, name: str) -> int:
    """How many builds of MODULE/VERSION the daemon has finished. One made ahead, while the gate was closed, is told of twice."""
    lines = machine.journal("--output=cat", "-u", "kmodhookd", lines=10000).splitlines()
    return sum(f"{name} for " in line and not line.endswith("built, not installed") for line in lines)


def upgrade(machine: Machine, *packages: str, **change: str) -> str:
    """Upgrade to a successor, and to further packages in the same transaction."""
    deb = repack.put(machine, Successor(PACKAGE, **change))
    return wanted.apt(machine, "install", "--allow-downgrades", deb, *packages)


def script(machine: Machine, *words: str) -> str:
    command = ["sh", "-c", 'systemd/install.sh "$@" 2>&1', "sh", *words]
    return machine.run(command, cwd=installed.CHECKOUT_INSIDE, env=APT_ENV, timeout=900).stdout


@pytest.fixture(scope="module")
def debian(installed_machine: Machine) -> Machine:
    return installed_machine


class TestBesideRealDkms:
    """kmodhookd is there first; dkms comes with the first -dkms package."""

    def test_installed_modules_are_built_once_by_us(self, debian: Machine, kernels: Kernels) -> None:
        assert debian.path(SWITCH).read_text().splitlines()[0] == MARK
        said = wanted.apt(debian, "install", kernels.cloud1.image, kernels.cloud1.headers, PACKAGE, OTHER)
        assert "autoinstall for dkms modules has been disabled" in said
        assert wanted.built_modules(debian, kernels.cloud1.release) == MODULES
        assert status(debian) == [f"{NAME}/{OLD}, {kernels.cloud1.release}, x86_64: installed"]
        wanted.settle(debian)
        assert builds(debian, f"{NAME}/{OLD}") == 1
        assert debian.run("dpkg -S /usr/sbin/dkms").stdout.startswith("dkms:")

    def test_upgrade_ends_with_the_new_version_alone(self, debian: Machine, kernels: Kernels) -> None:
        upgrade(debian, revision="1", upstream="0.90.0", mark="beside")
        assert version(debian, kernels.cloud1) == "beside"
        wanted.settle(debian)
        assert status(debian) == [f"{NAME}/0.90.0, {kernels.cloud1.release}, x86_64: installed"]
        assert {row[0] for row in wanted.states(debian)} == {"acpi-call", NAME}
        assert builds(debian, f"{NAME}/0.90.0") == 1

    def test_the_same_version_again_is_installed_again(self, debian: Machine, kernels: Kernels) -> None:
        upgrade(debian, revision="2", upstream="0.90.0", mark="beside")
        assert version(debian, kernels.cloud1) == "beside"
        assert status(debian) == [f"{NAME}/0.90.0, {kernels.cloud1.release}, x86_64: installed"]

    @pytest.mark.full
    def test_its_prerm_d_is_no_decision_against_the_modules(self, debian: Machine, kernels: Kernels) -> None:
        """Its script calls `dkms remove -k` for what ours has left; that was the kernel's end, and nobody's word."""
        assert debian.path("/etc/kernel/prerm.d/dkms").exists()
        wanted.apt(debian, "purge", kernels.cloud1.image)
        wanted.settle(debian)
        assert wanted.built_modules(debian, kernels.cloud1.release) == []
        wanted.apt(debian, "install", kernels.cloud1.image)
        assert wanted.built_modules(debian, kernels.cloud1.release) == MODULES
        assert version(debian, kernels.cloud1) == "beside"
        assert status(debian) == [f"{NAME}/0.90.0, {kernels.cloud1.release}, x86_64: installed"]

    def test_removal_takes_the_modules_along(self, debian: Machine, kernels: Kernels) -> None:
        wanted.apt(debian, "remove", PACKAGE)
        wanted.settle(debian)
        assert wanted.built_modules(debian, kernels.cloud1.release) == ["acpi_call"]
        assert not debian.path(f"/var/lib/dkms/{NAME}").exists()

    def test_a_real_dkms_at_work_is_waited_for(self, debian: Machine, kernels: Kernels) -> None:
        """Somebody has taken the switch away: the postinst builds as root, and so do we."""
        debian.path(SWITCH).unlink()
        said = wanted.apt(debian, "install", PACKAGE)
        assert "Building initial module" in said
        wanted.settle(debian)
        assert status(debian) == [f"{NAME}/{OLD}, {kernels.cloud1.release}, x86_64: installed"]
        assert wanted.states(debian)[NAME, kernels.cloud1.release] == "installed"
        assert wanted.vermagic(debian, kernels.cloud1.release, NAME).split()[0] == kernels.cloud1.release

    def test_an_administrator_s_own_switch_stays_as_it_is(self, debian: Machine) -> None:
        debian.path(SWITCH).write_text("")
        debian.run("/usr/lib/kmodhookd/beside on && /usr/lib/kmodhookd/beside off")
        assert debian.path(SWITCH).read_text() == ""
        debian.path(SWITCH).unlink()
        debian.run("/usr/lib/kmodhookd/beside on")


class TestInPlaceOfRealDkms:
    """`install.sh --dkms` on the machine as the above left it."""

    def test_it_takes_the_place_and_leaves_all_as_it_was(self, debian: Machine, kernels: Kernels) -> None:
        before = {name: debian.path(file(kernels.cloud1, name)).read_bytes() for name in MODULES}
        said = script(debian, "--dkms")
        assert f"{NAME}\t{OLD}\t{kernels.cloud1.release}\tx86_64\tinstalled" in said
        shown = debian.run("dpkg-query -W -f '${Package} ${db:Status-Status}\\n'").stdout.splitlines()
        for package in (PACKAGE, OTHER, "kmodhookd-dkms"):
            assert f"{package} installed" in shown
        assert "dkms installed" not in shown
        assert debian.run("dpkg -S /usr/sbin/dkms").stdout.startswith("kmodhookd-dkms:")
        assert {name: debian.path(file(kernels.cloud1, name)).read_bytes() for name in MODULES} == before
        assert status(debian) == [f"{NAME}/{OLD}, {kernels.cloud1.release}, x86_64: installed"]
        assert debian.path("/etc/dkms/framework.conf").exists()
        assert "0 not upgraded" in wanted.apt(debian, "--simulate", "install", "--fix-broken")

    def test_a_package_is_built_in_its_own_postinst(self, debian: Machine, kernels: Kernels) -> None:
        wanted.apt(debian, "purge", "acpi-call-dkms")
        assert wanted.built_modules(debian, kernels.cloud1.release) == [NAME]
        assert not debian.path("/var/lib/dkms/acpi-call").exists()
        said = wanted.apt(debian, "install", "acpi-call-dkms")
        assert wanted.built_modules(debian, kernels.cloud1.release) == MODULES
        assert "acpi_call" in wanted.indexed(debian, kernels.cloud1.release)
        configured = said[said.index("Setting up acpi-call-dkms") :]
        assert f"acpi-call/1.2.2 for {kernels.cloud1.release}: done" in configured.split("Processing triggers")[0]

    def test_upgrade_keeps_the_old_module_until_the_new_one_is_in(self, debian: Machine, kernels: Kernels) -> None:
        witness = repack.put_script_package(debian, "zz-witness", {"preinst": WITNESS})
        upgrade(debian, witness, revision="1", upstream="0.91.0", mark="new")
        seen = debian.path("/root/seen").read_text().splitlines()
        assert seen == ["unpacked 0.91.0-1", file(kernels.cloud1), "status: "], "before the postinst"
        assert version(debian, kernels.cloud1) == "new"
        assert status(debian) == [f"{NAME}/0.91.0, {kernels.cloud1.release}, x86_64: installed"]
        wanted.settle(debian)
        left = debian.run(f"find /var/lib/kmodhookd /var/lib/dkms -path '*{OLD}*'").stdout
        assert left == "", "of the old version nothing is left"

    def test_the_same_version_again_keeps_its_build(self, debian: Machine, kernels: Kernels) -> None:
        """A packaging-only upload."""
        build = debian.path(f"/var/lib/dkms/{NAME}/0.91.0/{kernels.cloud1.release}/x86_64")
        before = build.stat().st_ino, debian.path(file(kernels.cloud1)).stat().st_ino
        upgrade(debian, revision="2", upstream="0.91.0", mark="new")
        assert (build.stat().st_ino, debian.path(file(kernels.cloud1)).stat().st_ino) == before
        assert status(debian) == [f"{NAME}/0.91.0, {kernels.cloud1.release}, x86_64: installed"]

    def test_the_same_version_with_a_patch_is_built_again(self, debian: Machine, kernels: Kernels) -> None:
        upgrade(debian, revision="3", upstream="0.91.0", mark="patched")
        assert version(debian, kernels.cloud1) == "patched"

    def test_a_new_version_that_does_not_compile_leaves_the_old_one(self, debian: Machine, kernels: Kernels) -> None:
        said = upgrade(debian, revision="1", upstream="0.92.0", mark="broken", body="#error on purpose")
        assert "on purpose" in said
        wanted.settle(debian)
        assert version(debian, kernels.cloud1) == "patched"
        assert debian.run("kmodhookctl check", check=False).returncode == 0, "it boots with its module"
        told = debian.run(["kmodhookctl", "explain", NAME, "-k", kernels.cloud1.release]).stdout
        assert "on purpose" in told and "stays until 0.92.0 is" in told
        assert "installed" in debian.run("dpkg -s bbswitch-dkms | grep Status").stdout

    def test_a_kernel_and_a_new_version_in_one_transaction(self, debian: Machine, kernels: Kernels) -> None:
        new = kernels.cloud2
        said = upgrade(debian, new.image, new.headers, revision="1", upstream="0.93.0", mark="newer")
        assert [version(debian, kernel) for kernel in (kernels.cloud1, new)] == ["newer", "newer"]
        assert wanted.built_modules(debian, new.release) == MODULES
        assert "W: kmodhookd" not in said
        wanted.settle(debian)
        assert len(status(debian)) == 2

    def test_removal_and_purge_leave_nothing(self, debian: Machine, kernels: Kernels) -> None:
        wanted.apt(debian, "remove", PACKAGE)
        for kernel in (kernels.cloud1, kernels.cloud2):
            assert wanted.built_modules(debian, kernel.release) == ["acpi_call"]
            assert NAME not in wanted.indexed(debian, kernel.release)
        wanted.apt(debian, "purge", PACKAGE)
        wanted.settle(debian)
        places = " ".join(f"/var/lib/kmodhookd/{name}" for name in ("records", "failures", "parked", "found"))
        left = debian.run(
            f"find {places} /var/lib/dkms -path '*{NAME}*' 2>/dev/null; cat /var/lib/kmodhookd/decisions.json"
        )
        assert NAME not in left.stdout

    @pytest.mark.full
    def test_a_removed_kernel_is_no_decision_against_its_modules(self, debian: Machine, kernels: Kernels) -> None:
        """DKMS's conffile /etc/kernel/prerm.d/dkms is still there, and calls `dkms remove -k`."""
        assert debian.path("/etc/kernel/prerm.d/dkms").exists()
        wanted.apt(debian, "purge", kernels.cloud2.image)
        said = wanted.apt(debian, "install", kernels.cloud2.image)
        told = debian.run(["kmodhookctl", "explain", "acpi-call", "-k", kernels.cloud2.release], check=False).stdout
        assert wanted.built_modules(debian, kernels.cloud2.release) == ["acpi_call"], f"{said}\n{told}"

    def test_uninstall_brings_the_real_one_back_where_packages_need_it(self, debian: Machine, kernels: Kernels) -> None:
        script(debian, "--uninstall")
        shown = debian.run("dpkg-query -W -f '${Package} ${db:Status-Status}\\n'").stdout.splitlines()
        for package in ("dkms", OTHER):
            assert f"{package} installed" in shown
        assert not [line for line in shown if line.startswith("kmodhookd")]
        assert not debian.path(SWITCH).exists()
        assert status(debian, "acpi-call") == [
            f"acpi-call/1.2.2, {kernel.release}, x86_64: installed" for kernel in (kernels.cloud1, kernels.cloud2)
        ]


@pytest.mark.full
def test_every_package_installs_upgrades_and_goes(fresh_installed_machine: Machine, kernels: Kernels) -> None:
    debian = fresh_installed_machine
    script(debian, "--dkms")
    wanted.apt(debian, "install", kernels.k2.image, kernels.k2.headers, *sources.TWELVE)
    before = wanted.built_modules(debian, kernels.k2.release)
    assert set(status(debian, "")) == {line for line in status(debian, "") if line.endswith(": installed")}
    debs = [repack.put(debian, Successor(package, revision="99", mark="again")) for package in sources.TWELVE]
    wanted.apt(debian, "install", "--allow-downgrades", *debs)
    assert wanted.built_modules(debian, kernels.k2.release) == before
    assert {version(debian, kernels.k2, module) for module in before} == {"again"}
    wanted.apt(debian, "purge", *sources.TWELVE)
    wanted.settle(debian)
    assert wanted.built_modules(debian, kernels.k2.release) == []
    # The key that was made for signing stays, as DKMS's own does: a machine's owner may have enrolled it.
    assert set(debian.run("ls /var/lib/dkms").stdout.split()) <= {"mok.key", "mok.pub"}
