# SPDX-License-Identifier: GPL-2.0-or-later
"""What real Bash makes of texts, for comparison with our static reader; and texts to try it on."""

import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodhookd.observe import bashparse
from kmodhookd.observe.basheval import Shell
from kmodhookd.observe.bashtree import Undecidable

NOBODY = 62936  # a uid that owns nothing, and that no build gets
PREDEFINED = {"kernelver": "6.1.0-56-amd64", "arch": "x86_64", "E": "", "S": "a b  c", "N": "2"}
NAMES = ("A", "B", "x", "y1", *PREDEFINED)
Values = dict[tuple[str, int], str]

# Reads $2 files in directory $1, each in a shell of its own, and prints the variables named behind them.
_SCRIPT = r"""
shopt -s extglob
directory=$1 count=$2; shift 2
while [[ $1 == *=* ]]; do declare "$1"; shift; done
dump() {
    for name; do
        declare -n array=$name
        for i in "${!array[@]}"; do printf 'value\0%s\0%s\0%s\0' "$name" "$i" "${array[i]}"; done
        unset -n array
    done
}
for ((file = 0; file < count; file++)); do
    ( exec </dev/null; . "$directory/$file" >/dev/null 2>&1; dump "$@"; : )
    printf 'end\0'
done
"""


def static(text: str) -> Values | None:
    """What we make of a text; None when it is left to Bash."""
    shell = Shell({name: {0: value} for name, value in PREDEFINED.items()})
    try:
        shell.run(bashparse.parse(text))
    except Undecidable:
        return None
    return {(name, i): value for name in NAMES for i, value in shell.variables.get(name, {}).items()}


def bash(
    texts: Sequence[str], predefined: Mapping[str, str] = PREDEFINED, names: Sequence[str] = NAMES
) -> list[Values]:
    """What Bash makes of them, as nobody: should the static reader take a command for data, nothing is lost."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # pytest's own directories are root's alone
        directory = Path(name)
        directory.chmod(0o755)
        for number, text in enumerate(texts):
            (directory / str(number)).write_bytes(text.encode("utf-8", "surrogateescape"))
        (directory / "script").write_text(_SCRIPT)
        output = _as_nobody(directory, len(texts), [f"{key}={value}" for key, value in predefined.items()], names)
    fields = iter(output.decode("utf-8", "surrogateescape").split("\0"))
    results = []
    for _ in texts:
        found: Values = {}
        while next(fields) == "value":
            name, index, value = next(fields), next(fields), next(fields)
            found[name, int(index)] = value
        results.append(found)
    return results


def _as_nobody(directory: Path, count: int, settings: Sequence[str], names: Sequence[str]) -> bytes:
    argv = ["bash", str(directory / "script"), str(directory), str(count), *settings, *names]
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nowhere"}
    done = subprocess.run(
        argv,
        env=env,
        cwd=directory,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        timeout=300,
        check=True,
    )
    return done.stdout


# --- texts ------------------------------------------------------------------------------------------------------------

_SOUP_WORDS = """A B x y1 = += " ' ; \\ $A ${A} $B "$A" ${A[1]} ${A[@]} ${#A[@]} ${#B} $kernelver ${kernelver%%-*}
${kernelver##*-} ${kernelver#*.} ${kernelver%-*} ${kernelver/amd64/x} ${kernelver//-/_} ${E:-d} ${E-d} ${U+z} $S $E $U
"${S}" A= B= A[1]=
A[0]= B+= A=( ( ) [2]= && || ! [[ ]] =~ ^6\\. if then else elif fi case in *) 6.*) esac ;; { } # export unset echo true
false : ~ * ? [a-z] - . / 10 08 1 | & > < ` $( $ ${ % , @ ^ é $' $" -eq A=1;"""
_SOUP = [
    *_SOUP_WORDS.split(),
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "\\\n",
    " ! ",
    "[ ",
    " ]",
    " = ",
    " == ",
    " != ",
    "-n ",
    "-z ",
    "[[ ",
    " ]]",
    "fi\n",
]
_SOUP += [
    "; A=2; ",
    "A=1\n",
    'B="x y"\n',
    "\nA=${B}\n",
    "${U:-d e}",
    '${S:+"q"}',
    "# c\n",
    ";;\n",
    " =~ ",
    "case ",
    " in ",
]
_PIECE_WORDS = """a b x 1 /usr/src "$A" $A ${B} '$q' "a\\"b" "\\$x" ${kernelver%%-*} "${kernelver#6.}" ${E:-z} ${A[1]} "${A[1]}"
"${A[*]}" $S "$S" 6.1* - . ${kernelver//./_} "${S/b/q}" ${#A[@]} é ? "*" "$" $ ~ =~ a=~ {a,b} [ab] \\* ! ^ "'" # 08"""
_PIECES = [*_PIECE_WORDS.split(), '"a b"', "\\ ", '"${U:-a b}"', "\\\n", '"x\\\ny"', "${S%% *}", "\r"]
_EXPRESSIONS = [
    "^6",
    "amd64$",
    r"^(5|6)\.[0-9]+",
    "[[:digit:]]",
    '"6."',
    "$B",
    "x|6",
    "(a",
    "a b",
    "^6*",
    "(6)\\.1",
    "(6)\\1",
    "\\w\\.",
    "[.]1",
]


class Texts:
    """Random confs: sound ones made of statements, and soups of pieces."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def text(self) -> str:
        if self.random.random() < 0.5:
            return "".join(self.pick(_SOUP) for _ in range(self.random.randint(1, 14)))
        return "\n".join(self.statement() for _ in range(self.random.randint(1, 5))) + "\n"

    def word(self) -> str:
        return "".join(self.pick(_PIECES) for _ in range(self.random.randint(0, 3)))

    def statement(self) -> str:
        name = self.pick("AB")
        sign = self.pick(["=", "=", "+="])
        match self.random.randrange(12):
            case 0 | 1 | 2:
                index = self.pick(["", "", f"[{self.random.randint(0, 3)}]", "[$N]", "[${#A[@]}]"])
                return f"{name}{index}{sign}{self.word()}"
            case 3 | 4:
                elements = [self.pick(["", "", f"[{self.random.randint(0, 4)}]="]) + self.word() for _ in range(3)]
                return f"{name}{sign}({' '.join(elements[: self.random.randint(0, 3)])})"
            case 5:
                return f"if {self.condition()}; then\n{self.statement()}\nelse {self.statement()}\nfi"
            case 6:
                return f"{self.condition()}{self.pick([' && ', ' || '])}{self.statement()}"
            case 7:
                patterns = f"{self.word()}|6.1*"
                return f"case {self.word()} in {patterns}) {self.statement()} ;;\n *) {self.statement()};; esac"
            case 8:
                return f"export {name}={self.word()}"
            case 9:
                return self.pick(
                    ["unset A", "unset B", "unset 'A[0]'", f"# {self.word()}", "\r", f"echo {self.word()}"]
                )
            case 10:
                return f"{{ {self.statement()}; }}"
        return f"{name}={self.word()} {self.pick('AB')}={self.word()}"

    def condition(self) -> str:
        left, right = self.word(), self.word()
        comparison = self.pick([" = ", " != ", " == "])
        match self.random.randrange(7):
            case 0:
                return f"[ {left}{comparison}{right} ]"
            case 1:
                return f"[ {self.pick(['-n ', '-z ', '', '! '])}{left} ]"
            case 2:
                return f"[[ {left}{comparison}{right} ]]"
            case 3:
                return f"[[ {left} =~ {self.pick(_EXPRESSIONS)} ]]"
            case 4:
                return f"[[ {self.pick(['-n ', '-z ', ''])}{left}{self.pick([' && ', ' || '])}! {right} ]]"
            case 5:
                return f"! {self.condition()}"
        return f"[ {self.pick(['1', '$N'])} {self.pick(['-eq', '-lt', '-ge'])} {self.pick(['1', '$N', '10'])} ]"
