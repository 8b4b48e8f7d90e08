# SPDX-License-Identifier: GPL-2.0-or-later
"""The form that depmod.d(5) and modprobe.d(5) share: directories with *.conf, lines of words."""

from collections.abc import Iterator, Sequence

from kmodhookd.root import Root


def lines(root: Root, directories: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The file, inside the root, and the words of each line that has any.

    Of files of one name the one in the first directory counts; they are read in the order of their names. Files that cannot
    be read count as empty: kmod could not read them either.
    """
    files: dict[str, str] = {}
    for directory in directories:
        place = root.resolve(directory)
        if place.is_dir():
            for path in place.iterdir():
                if path.name.endswith(".conf"):
                    files.setdefault(path.name, f"{directory}/{path.name}")
    for name in sorted(files):
        try:
            text = root.resolve(files[name]).read_text("utf-8", "replace")
        except OSError:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if words := line.partition("#")[0].split():
                yield files[name], words
