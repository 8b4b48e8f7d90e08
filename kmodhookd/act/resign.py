# SPDX-License-Identifier: GPL-2.0-or-later
"""Another key, the same modules: what lies in the DKMS tree is signed again, and nothing is compiled."""

import shutil
from collections.abc import Callable
from pathlib import Path

from kmodhookd.act.compress import compress
from kmodhookd.act.failures import BuildFailed, failed, from_os
from kmodhookd.act.makelog import MakeLog
from kmodhookd.act.product import SUFFIXES, SYMVERS
from kmodhookd.act.sign import Signer
from kmodhookd.act.stored import Built, keep_log
from kmodhookd.act.workspace import empty
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, Kernel, Placement, Recipe, Record
from kmodhookd.observe.elf import unpack
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Check = Callable[[Path], None]  # looks at a module, not compressed and not signed; raises what is to stop it


def resign(
    root: Root,
    settings: Settings,
    kernel: Kernel,
    placement: Placement,
    signer: Signer,
    *,
    progress: Callable[[str, float], None],
) -> Built:
    """Sign the stored modules of a placement anew; to be stored like a build. Its log is the build's, continued.

    `BuildFailed` when it cannot be done; what is stored and installed stays as it was.
    """
    recipe, record = placement.recipe, placement.record
    assert recipe is not None
    assert record is not None
    progress("sign", 0.0)
    return carry(root, settings, kernel, recipe, record, signer)


def carry(
    root: Root,
    settings: Settings,
    kernel: Kernel,
    recipe: Recipe,
    record: Record,
    signer: Signer,
    *,
    check: Check | None = None,
    note: str = "",
    doing: str = "signing again",
) -> Built:
    """What the DKMS tree holds by a record, checked, signed and compressed for a recipe's kernel; to be stored like a build.

    `note` is put behind the build's log. `BuildFailed` when it cannot be done, or what `check` raises.
    """
    stored = root.resolve(settings.dkms_tree) / record.module / record.version / record.kernel / record.arch
    try:
        workspace = empty(root, recipe)
    except OSError as error:
        raise from_os(recipe, error, doing) from None
    path = workspace.path / "make.log"
    kept = False
    try:
        earlier = stored / "log" / path.name
        with MakeLog(path) as log:
            log.file.write(earlier.read_bytes() if earlier.is_file() else b"")
            if note:
                log.line(f"\n{note}")
            files = []
            for module in [module for module in recipe.modules if not module.excluded]:
                found = [stored / "module" / f"{module.dest_name}{suffix}" for suffix in SUFFIXES]
                source = next((one for one in found if one.exists()), found[0])
                plain = workspace.accepted / f"{module.dest_name}.ko"
                unpack(source, plain)
                if check is not None:
                    check(plain)
                signer(plain, log)
                files.append(compress(root, plain, kernel.compression, settings.dkms))
        if (stored / "module" / SYMVERS).is_file():
            files.append(workspace.accepted / SYMVERS)
            shutil.copyfile(stored / "module" / SYMVERS, files[-1])
        kept = True
        return Built(workspace, recipe.kernel, recipe.arch, tuple(files), path, record.seconds, record.mechanism)
    except BuildFailed as error:
        raise keep_log(root, settings, error, path) from None
    except OSError as error:
        raise from_os(recipe, error, doing) from None
    except Fault as fault:
        raise failed(recipe, FailureClass.SIGNING, str(fault), remedy="ask for a rebuild") from None
    finally:
        if not kept:
            workspace.remove()
