# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf under what one call asks for; and one that is as intricate as zfs's."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_dkmsconf import HEAD, K1, SOURCE, bash, place, top, values

from kmodhookd.model import Source
from kmodhookd.observe import dkmsconf
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Invocation, Settings

__all__ = ["place", "top"]  # fixtures


# --- what one call asks for -------------------------------------------------------------------------------------------

ASKED = ('MAKE=make $kernelver "x  y"', "STRIP=no", "PATCH=z", "FOO=bar", "=x", "1A=y", "AUTOINSTALL")


@pytest.mark.parametrize("first", ["", "x=$(:)\n"], ids=["static", "bash"])
def test_directives_come_last_and_are_not_evaluated(place: Path, first: str) -> None:
    """As `--directive` of DKMS: exported into the shell that has read everything, so element 0 of an array."""
    (place / "dkms.conf").write_text(HEAD + first + "MAKE=own\nMAKE[1]=one\nPATCH=(a b)\nAUTOINSTALL=yes\n")
    source = Source(module="m", version="1.0", path=str(place))
    settings = Settings(invocation=Invocation(directives=ASKED, module="m", version="1.0"))
    (answer,) = dkmsconf.read_conf(Root("/"), settings, source, [K1]).values()
    assert values(answer) == {
        "MAKE": {0: 'make $kernelver "x  y"', 1: "one"},
        "STRIP": {0: "no"},
        "PATCH": {0: "z", 1: "b"},
        "AUTOINSTALL": {0: "yes"},
    }
    other = settings.model_copy(update={"invocation": Invocation(directives=ASKED, module="other")})
    (answer,) = dkmsconf.read_conf(Root("/"), other, source, [K1]).values()
    assert values(answer)["MAKE"] == {0: "own", 1: "one"}


def test_variables_follow_what_is_asked_for(top: Path) -> None:
    asked = Invocation(kernel_source_dir="/srv/h", kernel_config="/srv/c")
    made = Settings(invocation=asked, dkms=Dkms(parallel_jobs=3, tmp_location="/var/tmp"), dkms_tree="/srv/d")
    (top / "usr/src/m-1.0/dkms.conf").write_text(
        HEAD + 'MAKE="$kernel_source_dir $kernel_config $parallel_jobs $tmp_location $dkms_tree"\n'
    )
    (answer,) = dkmsconf.read_conf(Root(top), made, SOURCE, [K1]).values()
    assert values(answer) == {"MAKE": {0: "/srv/h /srv/c 3 /var/tmp /srv/d"}}


# A dkms.conf as zfs's packages make it: over several lines, with substitutions for the second time.
ZFS_LIKE = r"""
PACKAGE_CONFIG="/etc/default/nothing"
PRE_BUILD="configure
  --prefix=/usr
  --with-linux=$(
    case `echo Debian` in
      (Debian|Devuan)
        if [[ -e ${kernel_source_dir/%build/source} ]]
        then
          echo ${kernel_source_dir/%build/source}
        else
          echo ${kernel_source_dir}
        fi
      ;;
      (*)
        echo elsewhere
      ;;
    esac
  )
  --with-linux-obj=${kernel_source_dir}
  $(
    [[ -n \"${ICP_ROOT}\" ]] && \
    {
      echo --with-qat=\"${ICP_ROOT}\"
    }
  )
"
POST_BUILD="scripts/postbuild
  -n ${PACKAGE_NAME}
  -a ${arch}
  -k ${kernelver}
  -t ${dkms_tree}
"
STRIP[0]="$(
  [[ -r ${PACKAGE_CONFIG} ]] \
  && source ${PACKAGE_CONFIG} \
  && echo -n no
)"
STRIP[1]="${STRIP[0]}"
MAKE[0]="make"
"""


def test_a_conf_like_zfs_s(place: Path) -> None:
    """With what it does not mean: escaped quotes within a substitution are characters of their own, which are not empty."""
    said = values(bash(place, HEAD + ZFS_LIKE)[0])
    build = f"/usr/lib/modules/{K1[0]}/build"
    assert said["PRE_BUILD"] == {
        0: f"configure --prefix=/usr --with-linux={build} --with-linux-obj={build} --with-qat= "
    }
    assert said["POST_BUILD"] == {0: f"scripts/postbuild -n m -a x86_64 -k {K1[0]} -t /var/lib/dkms "}
    assert said["STRIP"] == {0: "", 1: ""} and said["MAKE"] == {0: "make"}
