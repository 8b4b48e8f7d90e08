# SPDX-License-Identifier: GPL-2.0-or-later
"""What framework.conf asks for once modules are in: `post_transaction`, and `modprobe_on_install` for explicit verbs.

Both run as root, apart from the daemon. Neither can undo anything, so what goes wrong with them is told and stops nothing.
Loading modules is a person's decision, never part of an upgrade: only verbs that somebody says call `load_modules`.
"""

import os
import time
from pathlib import Path

from kmodhookd import store
from kmodhookd.act.toolchain import which
from kmodhookd.act.unit import run_apart
from kmodhookd.errors import Fault
from kmodhookd.root import Root
from kmodhookd.settings import Settings

TIMEOUT = 900.0  # seconds: people make an initramfs in it
LOADING_TIMEOUT = 120.0
LOG = "post_transaction.log"
MAX_ALIASES = 20_000
LOADER = "systemd-modules-load.service"
UNITS = ("/usr/lib/systemd/system", "/lib/systemd/system")


def post_transaction(root: Root, settings: Settings) -> None:
    """Run the shell command of that name, if there is one, its words kept in DKMS's tree. `Fault` when it fails.

    DKMS 3.2 and later run it after each installation or removal (and by a defect of theirs never after autoinstall); here it
    runs once, after a pass or verb that changed anything.
    """
    command = settings.dkms.post_transaction
    if not command.strip():
        return
    shell = which(root, "bash") or "/bin/sh"
    result = run_apart(root, [shell, "-c", command], timeout=TIMEOUT)
    log = f"{settings.dkms_tree}/{LOG}"
    heading = f"# {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {command}\n# {result.sentence()}\n"
    store.write_atomic(root.resolve(log), (heading + result.output).encode("utf-8", "replace"))
    if not result.ok:
        where = "post_transaction in /etc/dkms/framework.conf"
        raise Fault(f"its command failed: {result.sentence()}", where=where, hint=f"see {log}")


def load_modules(root: Root, devices: Path = Path("/sys/devices")) -> None:
    """Load the modules of every device there is, blacklists obeyed, and those of modules-load.d. `Fault` when that fails."""
    if not root.is_host:
        return
    aliases = sorted(_aliases(devices))[:MAX_ALIASES]
    # modprobe -a ends with 1 where some alias has no module, which is usual: only that it runs counts.
    commands = [["modprobe", "-a", "-b", "-q", "--", *aliases]] if aliases else []
    if which(root, "systemctl") and any(root.resolve(f"{top}/{LOADER}").exists() for top in UNITS):
        commands.append(["systemctl", "restart", LOADER])
    for command in commands:
        result = run_apart(root, command, timeout=LOADING_TIMEOUT)
        if not result.ok and (command[0] != "modprobe" or result.status != 1):
            raise Fault(f"modules are not loaded: {result.sentence()}", where=command[0], hint="modprobe them")


def _aliases(devices: Path) -> set[str]:
    """The modalias of every device."""
    found = set()
    for directory, _, files in os.walk(devices):
        if "modalias" in files:
            try:
                found.add(Path(directory, "modalias").read_text("utf-8", "replace").strip())
            except OSError:
                continue
    return found - {""}
