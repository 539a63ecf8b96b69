"""Tests of shared.storage.regular_files on real files, links, FIFOs, sockets and devices."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.storage.regular_files import FileRefused, open_regular, read_capped, stat_regular


def _link_to_a_file(path: Path) -> None:
    path.symlink_to(path.parent.parent / "outside")


def _link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(path.parent):
        listener.bind(path.name)  # a socket's path has at most 107 bytes


IRREGULAR: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": _socket,
    "link to a file": _link_to_a_file,
    "link to a device": _link_to_a_device,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, root: Path) -> None:
    """Nobody writes to the FIFO: to wait for that would be for ever. No path is told."""
    IRREGULAR[kind](root / "x")
    with pytest.raises(FileRefused, match=r"symbolic link|no regular file") as refusal:
        read_capped(root / "x", 100, inside=root)
    assert str(root) not in str(refusal.value)
    assert stat_regular(root / "x", inside=root) is None


@pytest.mark.parametrize("kind", ["FIFO", "socket", "link to a device"])
def test_where_links_are_followed_it_must_still_be_a_regular_file(kind: str, root: Path) -> None:
    """Without `inside`, a link to a file is read, one to a device is not."""
    IRREGULAR[kind](root / "x")
    with pytest.raises(FileRefused, match="no regular file"):
        read_capped(root / "x", 100)
    (root / "y").symlink_to(root.parent / "outside")
    assert read_capped(root / "y", 100) == b"secret"


def test_no_folder_on_the_way_may_be_a_link_but_the_root_may(root: Path) -> None:
    """`root` behind a link is where somebody put the whole; a link below it leads out."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"x")
    (root / "linked").symlink_to("a")
    (root.parent / "way").symlink_to(root)
    assert read_capped(root / "a" / "b" / "file", 1, inside=root) == b"x"
    way = root.parent / "way"
    assert read_capped(way / "a" / "b" / "file", 1, inside=way) == b"x"
    assert stat_regular(way / "a" / "b" / "file", inside=way) is not None
    for path in (root / "linked" / "b" / "file", way / "linked" / "b" / "file"):
        inside = root if root in path.parents else way
        with pytest.raises(FileRefused, match="symbolic link"):
            open_regular(path, inside=inside)
        assert stat_regular(path, inside=inside) is None


def test_two_dots_do_not_lead_out(root: Path) -> None:
    """Whatever a caller forgot to check."""
    for path in (root / ".." / "outside", root / "a" / ".." / ".." / "outside"):
        with pytest.raises(FileRefused, match=r"\.\."):
            open_regular(path, inside=root)


def test_a_file_larger_than_the_cap_is_refused_before_it_is_read(root: Path) -> None:
    """1 TB that takes no disk: to read it would take all memory. At the cap it is read whole."""
    with (root / "x").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(FileRefused, match="more than 10 bytes"):
        read_capped(root / "x", 10, inside=root)
    (root / "y").write_bytes(b"0123456789")
    assert read_capped(root / "y", 10, inside=root) == b"0123456789"
    with pytest.raises(FileRefused, match="more than 9 bytes"):
        read_capped(root / "y", 9)


def test_a_file_that_states_no_size_is_capped_too() -> None:
    """Files of /proc have 0 bytes for stat() and more for read()."""
    with pytest.raises(FileRefused, match="more than 10 bytes"):
        read_capped(Path("/proc/self/status"), 10)


def test_what_is_absent_or_a_folder_is_said_as_open_says_it(root: Path) -> None:
    """Readers tell "not there" from "not allowed to be"."""
    (root / "folder").mkdir()
    (root / "file").touch()
    for path, kind in (
        (root / "nothing", FileNotFoundError),
        (root / "nothing" / "x", FileNotFoundError),
        (root / "file" / "x", NotADirectoryError),
        (root / "folder", IsADirectoryError),
    ):
        with pytest.raises(kind):
            open_regular(path, inside=root)


def test_nothing_stays_open(root: Path) -> None:
    """Neither after a success nor after a refusal."""
    (root / "a").mkdir()
    (root / "a" / "file").touch()
    os.mkfifo(root / "a" / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        open_regular(root / "a" / "file", inside=root).close()
        for name in ("fifo", "nothing"):
            with pytest.raises(OSError):  # noqa: PT011 - any
                open_regular(root / "a" / name, inside=root)
        stat_regular(root / "a" / "file", inside=root)
    assert len(os.listdir("/proc/self/fd")) == before
