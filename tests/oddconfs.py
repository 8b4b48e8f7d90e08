# SPDX-License-Identifier: GPL-2.0-or-later
"""Confs that are only read, not built: every way to write a directive that packages have found, and where we mean to differ."""

from oddsources import Odd

_MODULE = 'BUILT_MODULE_NAME[0]="{name}"\nDEST_MODULE_LOCATION[0]="/updates"\n'
_NAMED = 'PACKAGE_NAME="{name}"\nPACKAGE_VERSION="1.0"\n'


def _odd(name: str, conf: str, *, etc: dict[str, str] | None = None) -> Odd:
    """`conf` stands behind a name and version, and behind a module unless it names its own."""
    module = "" if "BUILT_MODULE_NAME" in conf else _MODULE
    return Odd(name, (_NAMED + module).format(name=name) + conf, {}, etc or {})


CONFS = (
    *(
        _odd(f"autoinstall_{number}", f"AUTOINSTALL={word}\n")
        for number, word in enumerate(('"yes"', "y", "YES", "'Yes'", "", "true", "1"))
    ),
    *(
        _odd(f"strip_{number}", f'{words}\nBUILT_MODULE_NAME=(a b c)\nDEST_MODULE_LOCATION=(/extra{{,,}})\n')
        for number, words in enumerate(("STRIP=no", "STRIP[1]=N", "STRIP=(no yes)", 'STRIP[2]="never"\nSTRIP[0]=YES'))
    ),
    _odd("arrays", 'BUILT_MODULE_NAME=("one" [2]=three [1]=two)\nDEST_MODULE_LOCATION=("/extra" "/updates/x" /kernel/a)\n'),
    _odd("appended", 'BUILT_MODULE_NAME+=(a)\nBUILT_MODULE_NAME+=(b)\nDEST_MODULE_LOCATION=(/extra)\n'
         'DEST_MODULE_LOCATION[${#DEST_MODULE_LOCATION[@]}]="/updates"\nMAKE="make"\nMAKE+=" all"\n'),
    _odd("locations", 'BUILT_MODULE_LOCATION="a//b/"\nBUILT_MODULE_NAME=x\nDEST_MODULE_LOCATION="/updates/a/"\n'),
    _odd("continued", 'MAKE="make -C $kernel_source_dir \\\n  M=$dkms_tree/x \\\n\tall"\n# MAKE=no\nPATCH=a.patch # not this\n'),
    _odd("blanks", 'MAKE="make   two\ttabs  three"\n\tPRE_BUILD="a.sh  b"   \n  POST_INSTALL=\'c.sh  d\'\n'),
    _odd("quotes", "MAKE='make A=\"b c\"'\nPRE_BUILD=\"a.sh 'b  c'\"\nPOST_ADD=\"a\\ b\"\n"),
    _odd("twice", "MAKE='make K=$kernelver S=${source_tree}'\nPRE_BUILD='p.sh $module ${arch%_*}'\nPOST_BUILD='\\$kernelver'\n"),
    _odd("make_match", 'MAKE[0]="zero"\nMAKE[1]="one"\nMAKE_MATCH[1]="^(5\\.4|6)"\nMAKE[2]="two"\nMAKE_MATCH[2]="arch|el8"\n'),
    _odd("make_matched_first", 'MAKE[0]="zero"\nMAKE_MATCH[0]="el8|cloud"\n'),
    _odd("make_unmatched", 'MAKE[0]="zero"\nMAKE[1]="never"\n'),
    _odd("make_class", 'MAKE="zero"\nMAKE[1]="one"\nMAKE_MATCH[1]="^[[:digit:]]+\\.1{1,2}\\.0-[5-9]+"\n'),
    _odd("patches", 'PATCH[0]=a.patch\nPATCH[1]=b.patch\nPATCH_MATCH[1]="^6"\nPATCH[2]="sub/c.patch"\nPATCH_MATCH[2]="arch"\n'),
    _odd("exclusive", 'BUILD_EXCLUSIVE_KERNEL="^([5-9]\\.|6)"\nBUILD_EXCLUSIVE_ARCH="(x86_64|aarch64)"\n'),
    _odd("exclusive_config", 'BUILD_EXCLUSIVE_CONFIG="CONFIG_PREEMPT_RT !CONFIG_NO_SUCH"\n'),
    _odd("exclusive_not_config", 'BUILD_EXCLUSIVE_CONFIG="!CONFIG_PREEMPT_RT"\n'),
    _odd("depends", 'BUILD_DEPENDS[0]="a"\nBUILD_DEPENDS[1]="b"\nNO_WEAK_MODULES="yes"\n'),
    _odd("case", 'case $kernelver in 4.*|5.*) MAKE=old ;; *-rt-*) MAKE=rt ;; *cloud*) MAKE="c l" ;; *) MAKE=$arch ;; esac\n'),
    _odd("conditions", 'if [[ $kernelver =~ ^([0-9]+)\\.([0-9]+) ]] && (( BASH_REMATCH[1] >= 6 )); then\n'
         'MAKE="six ${BASH_REMATCH[2]}"\n'
         'elif [ -z "$nothing" -a "$arch" != x86_64 ]; then PATCH=p; else export MAKE="else"; fi\n'),
    _odd("functions", 'add() { PATCH[${#PATCH[@]}]="$1"; }\nadd a; add b\n[ "$arch" = i686 ] && add c\nunset -f add\n'),
    _odd("loops", 'for name in a b c; do\n'
         '  BUILT_MODULE_NAME[$((i))]="$name"\n  DEST_MODULE_LOCATION[$((i++))]="/extra/$name"\ndone\n'),
    _odd("commands", 'MAKE="make V=$(echo $kernelver | cut -d- -f1) N=`expr 1 + 2`"\nPRE_BUILD="$(basename /x/y.sh)"\n'),
    _odd("here", 'read -r MAKE <<END\nmake from here $kernelver\nEND\n'),
    _odd("sourced", '. "$source_tree/sourced-1.0/more.conf" 2>/dev/null || MAKE="not there"\n'),
    _odd("inherited", 'POST_BUILD="$PACKAGE_NAME-$PACKAGE_VERSION.sh"\nMAKE="$POST_BUILD ${DEST_MODULE_LOCATION[0]}"\n'),
    _odd("names", 'BUILT_MODULE_NAME=a-b_c\nDEST_MODULE_NAME=d_e-f\nDEST_MODULE_LOCATION=/kernel/drivers/char/\n'),
    _odd("directive", 'DKMS_DIRECTIVE_X="MAKE=directive"\n'),
    _odd("no_name", 'BUILT_MODULE_NAME=(a)\nDEST_MODULE_LOCATION=(/extra /extra)\n'),
    _odd("no_place", 'BUILT_MODULE_NAME=(a b)\nDEST_MODULE_LOCATION=(/extra)\n'),
    _odd("suffix", 'BUILT_MODULE_NAME=a\nDEST_MODULE_NAME=a.ko\nDEST_MODULE_LOCATION=/extra\n'),
    Odd("no_version", 'PACKAGE_NAME=no_version\nBUILT_MODULE_NAME=a\nDEST_MODULE_LOCATION=/extra\n'),
    _odd("overridden", 'MAKE=(package second)\nMAKE_MATCH[1]="rt"\nPATCH=(a b c)\nAUTOINSTALL=yes\nHELPER=mine\n', etc={
        "overridden.conf": 'AUTOINSTALL=\nPATCH[1]="administrator"\nHELPER=theirs\nMAKE_MATCH[1]="cloud"\n',
        "overridden-1.0.conf": 'MAKE[0]="${MAKE[0]} for $kernelver with ${HELPER:-none}"\nBUILD_EXCLUSIVE_ARCH="x86|aarch"\n',
        "overridden-1.0-KERNEL.conf": 'MAKE="this kernel alone"\nSTRIP="no"\n',
        "overridden-1.0-KERNEL-x86_64.conf": 'DEST_MODULE_LOCATION="/extra"\n',
        "overridden-1.0-5.4.0-150-generic-i686.conf": 'DEST_MODULE_NAME="for_i686"\nBUILD_EXCLUSIVE_ARCH=\n',
        "overridden-2.0.conf": 'MAKE="another version"\n'}),
    # --- where we mean to differ ---
    Odd("no_module", 'PACKAGE_NAME=no_module\nPACKAGE_VERSION=1.0\n'),
    _odd("crlf", 'MAKE="make all"\r\nAUTOINSTALL="yes"\r\n'),
    _odd("sparse", 'PATCH[0]=a\nPATCH[2]=c\nMAKE[0]=zero\nMAKE[3]=three\nMAKE_MATCH[3]=.\n'),
    _odd("depends_in_one", 'BUILD_DEPENDS="a b"\n'),
    _odd("repeated", 'BUILD_DEPENDS=(a b a)\n'),
    _odd("autoinstall_no", 'AUTOINSTALL="no"\n'),
    _odd("minimum", 'BUILD_EXCLUSIVE_KERNEL_MIN="6.1"\n'),
    _odd("maximum", 'BUILD_EXCLUSIVE_KERNEL_MAX="5.99"\n'),
    _odd("obsolete", 'OBSOLETE_BY="6.0"\n'),
    _odd("bad_expression", 'PATCH=(a)\nPATCH_MATCH=("(6")\n'),
    _odd("same_names", 'BUILT_MODULE_NAME=(a a)\nDEST_MODULE_LOCATION=(/extra /updates)\n'),
    _odd("outside", 'BUILT_MODULE_NAME=a\nBUILT_MODULE_LOCATION=../b\nDEST_MODULE_LOCATION=/extra\n'),
    _odd("second_quotes", 'MAKE="make A=\\"b c\\" > x; y"\n'),
)  # fmt: skip
