# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy files: what is wrong is named with file and line, and everything else counts."""

from pathlib import Path

import pytest
import trees

from kmodhookd import settings

MAIN = "/etc/kmodhookd/config.toml"


def load(base: Path, entries: dict[str, trees.Content]) -> settings.Settings:
    return settings.load(trees.make(base, entries))


def test_nothing_there_is_all_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, {"/etc": None}) == settings.Settings()


def test_later_files_win_key_by_key(tmp_path: Path) -> None:
    made = load(
        tmp_path,
        {
            MAIN: "[build]\njobs = 3\nnice = 5\n",
            "/etc/kmodhookd/config.d/10-a.toml": "[build]\njobs = 4\n[policy]\nrequired = ['zfs']\n",
            "/etc/kmodhookd/config.d/20-b.toml": "[build]\njobs = 5\n",
            "/etc/kmodhookd/config.d/30-c.toml~": "[build]\njobs = 6\n",
        },
    )
    assert (made.build.jobs, made.build.nice, made.policy.required, made.problems) == (5, 5, ("zfs",), ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[build]\n\nspeed = 1\n", f"{MAIN}:3: build.speed: unknown key (there are "),
        ("[build]\njobs = -1\n", f"{MAIN}:2: build.jobs: "),
        ("[build]\njobs = '4'\n", f"{MAIN}:2: build.jobs: "),
        ("[policy]\nrequired = [1]\n", f"{MAIN}:2: policy.required: "),
        ("[policy]\nautoinstall = 'yes'\n", f"{MAIN}:2: policy.autoinstall: "),
        ("[watch]\nquiet = nan\n", f"{MAIN}:2: watch.quiet: "),
        ("x = 1\n[bluid]\n", f"{MAIN}:2: unknown section 'bluid'"),
    ],
)
def test_what_does_not_fit_is_named_and_left_out(tmp_path: Path, text: str, said: str) -> None:
    made = load(tmp_path, {MAIN: text, "/etc/kmodhookd/config.d/x.toml": "[hooks]\ntotal = 7\n"})
    assert any(problem.removeprefix(str(tmp_path)).startswith(said) for problem in made.problems), made.problems
    assert made.hooks.total == 7
    assert made.build.jobs == 0 and made.policy.required == ()


@pytest.mark.parametrize("content", [b"[build\n", b"\xff\xfe", b"[build]\njobs = 1\njobs = 2\n"])
def test_a_file_that_is_no_toml_stops_nothing(tmp_path: Path, content: bytes) -> None:
    made = load(tmp_path, {MAIN: content})
    assert made.build == settings.Build() and len(made.problems) == 1


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    assert load(tmp_path, {f"{MAIN}/x": "", "/etc/kmodhookd/config.d": "a file"}).problems


def test_another_file_replaces_the_roots_own(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {MAIN: "[build]\njobs = 3\n", "/other.toml": "[build]\nnice = 1\n"})
    made = settings.load(root, str(tmp_path / "other.toml"))
    assert (made.build.jobs, made.build.nice) == (0, 1)
