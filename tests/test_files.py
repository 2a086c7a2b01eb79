"""Files that are whole, sealed, and owned by one process."""

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from phalanx.errors import FolderInUseError, PhalanxError, StorageError
from phalanx.files import Sealing, owned, require_sealed, whole

HOLD = """
import sys, time
from pathlib import Path
from phalanx.files import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that owns a folder; gives the process."""
    started = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_owned_folder_is_refused_by_name_until_its_owner_is_dead(holder, tmp_path):
    folder = tmp_path / "a"
    process = holder(folder)
    with pytest.raises(FolderInUseError) as caught, owned(folder):
        pass
    assert f"{folder} belongs to process {process.pid} on {socket.gethostname()}" in str(
        caught.value
    )
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PhalanxError)
    process.kill()  # which leaves what names it
    process.wait()
    assert json.loads((folder / ".owner").read_text())["process"] == process.pid
    with owned(folder):
        assert json.loads((folder / ".owner").read_text())["process"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_the_owner_on_another_host_is_not_taken_for_dead(tmp_path):
    who = {"process": 7, "host": "elsewhere", "since": "noon"}
    (tmp_path / ".owner").write_text(json.dumps(who))
    told = r"process 7 on elsewhere.*remove .*\.owner"
    with pytest.raises(FolderInUseError, match=told), owned(tmp_path):
        pass
    assert json.loads((tmp_path / ".owner").read_text()) == who
    (tmp_path / ".owner").unlink()
    with owned(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\0\0"])
def test_what_names_nobody_keeps_nobody_out(tmp_path, text):
    (tmp_path / ".owner").write_text(text)
    with owned(tmp_path):
        assert json.loads((tmp_path / ".owner").read_text())["process"] == os.getpid()


def test_one_folder_by_two_names_has_one_owner(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with owned(tmp_path / "a"), pytest.raises(FolderInUseError), owned(tmp_path / "b"):
        pass


def test_a_folder_is_left_as_it_was_if_nothing_came_into_it(tmp_path):
    with owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_threads_take_turns(tmp_path):
    inside, together, ended = [], [], []

    def enter():
        for _ in range(50):
            with suppress(FolderInUseError), owned(tmp_path / "a"):
                inside.append(1)
                together.append(len(inside))
                inside.pop()
        ended.append(1)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == {1}
    assert len(ended) == 4


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="which is a file"), owned(tmp_path / "a"):
        pass


def test_every_flipped_bit_and_every_cut_breaks_a_seal(tmp_path):
    path = tmp_path / "a"
    with path.open("wb") as file:
        sealing = Sealing(file)
        sealing.write(b"what was ")
        sealing.write(b"written")
        sealing.seal()
    require_sealed(path)
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"it has no digest|its bytes are not"):
                require_sealed(path)
        path.write_bytes(good[:place])
        with pytest.raises(ValueError, match=r"it has no digest|its bytes are not"):
            require_sealed(path)


def full(path):
    """Writes more than a file may hold here, as on a disk that is full."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        with whole(path) as beside:
            beside.write_bytes(bytes(5000))
    except StorageError as error:
        os._exit(0 if str(path) in str(error) else 3)
    os._exit(4)


def test_a_full_disk_leaves_what_stood_there(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    process = multiprocessing.get_context("fork").Process(target=full, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_wrong_with_a_path_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, whole(tmp_path / "no" / "a") as beside:
        beside.write_text("")
    assert caught.value.errno == errno.ENOENT
    assert not Path(tmp_path / "no").exists()
