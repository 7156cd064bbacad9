import errno
import multiprocessing
import os
import signal
import socket
import sys
import time

import pytest

from dassl.engine import run_folder
from dassl.errors import UserError

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


def test_a_run_is_finished_when_all_models_are_there_and_nothing_to_resume(tmp_path):
    def finished(*models):
        return run_folder.is_finished(str(tmp_path), models, 3)

    for name, epoch in (("one", 3), ("two", 3), ("three", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / run_folder.epoch_checkpoint(epoch)).touch()
    assert finished("one") and finished("one", "two")
    assert not finished("one", "three") and not finished("four") and not finished()
    (tmp_path / run_folder.RESUME_FILE).touch()
    assert not finished("one")


def test_config_comes_back_and_results_go_when_training_begins(tmp_path):
    folder = tmp_path / "run"
    assert run_folder.read_config(str(folder)) is None
    config = {"OPTIM": {"LR": 0.1, "STEPSIZE": [1, 2]}, "SEED": 1, "DATASET": {"NAME": "é"}}
    run_folder.begin(str(folder), config, [])
    (folder / run_folder.RESULTS_FILE).touch()
    (folder / "predictions.npz").touch()
    run_folder.begin(str(folder), config, [])
    assert run_folder.read_config(str(folder)) == config
    assert [path.name for path in folder.iterdir()] == [run_folder.CONFIG_FILE]


# The lock ---------------------------------------------------------------------------------------


def name_of(pid: int) -> str:
    return f"process {pid} on {socket.gethostname()}"


def test_a_folder_is_held_by_one_at_a_time_and_left_clean(tmp_path):
    folder = tmp_path / "new" / "run"
    assert run_folder.holder(str(folder)) is None
    for _ in range(2):
        with run_folder.locked(str(folder)):
            assert run_folder.holder(str(folder)) == name_of(os.getpid())
            with pytest.raises(UserError, match="OUTPUT_DIR: expected a folder that no ") as error:
                with run_folder.locked(str(folder)):
                    pass
            assert f"'{folder}', which {name_of(os.getpid())} is using" in str(error.value)
            assert run_folder.holder(str(folder)) is not None
        assert run_folder.holder(str(folder)) is None
        assert list(folder.iterdir()) == []


def test_the_lock_goes_after_an_error_and_two_folders_are_two_locks(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    with pytest.raises(KeyboardInterrupt), run_folder.locked(one), run_folder.locked(two):
        raise KeyboardInterrupt
    assert run_folder.holder(one) is run_folder.holder(two) is None


def test_a_lock_file_that_a_dead_process_left_is_taken_over(tmp_path):
    (tmp_path / run_folder.LOCK_FILE).write_text("process 123456789 on a.host.with.a.long.name\n")
    assert run_folder.holder(str(tmp_path)) is None
    with run_folder.locked(str(tmp_path)):
        assert run_folder.holder(str(tmp_path)) == name_of(os.getpid())


def test_a_lock_file_removed_by_its_holder_meanwhile_does_not_count(tmp_path, monkeypatch):
    path, flock, removed = tmp_path / run_folder.LOCK_FILE, run_folder.fcntl.flock, []

    def late(descriptor, operation):
        if not removed:
            removed.append(path.unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(run_folder.fcntl, "flock", late)
    with run_folder.locked(str(tmp_path)):
        assert path.exists() and run_folder.holder(str(tmp_path)) == name_of(os.getpid())


def test_who_only_asks_for_the_holder_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / run_folder.LOCK_FILE).touch()
    flock, asked = run_folder.fcntl.flock, []

    def busy(descriptor, operation):
        if len(asked) < 2:
            asked.append(operation)
            raise BlockingIOError(errno.EAGAIN, "somebody asks")
        flock(descriptor, operation)

    monkeypatch.setattr(run_folder.fcntl, "flock", busy)
    with run_folder.locked(str(tmp_path)):
        assert len(asked) == 2


def hold_and_die(folder: str, over) -> None:
    with run_folder.locked(folder):
        multiprocessing.get_context("fork").Process(target=over.wait).start()
        os.kill(os.getpid(), signal.SIGKILL)


@needs_fork
def test_the_lock_dies_with_its_process_though_a_forked_one_lives(tmp_path):
    context = multiprocessing.get_context("fork")
    over = context.Event()
    process = context.Process(target=hold_and_die, args=(str(tmp_path), over))
    process.start()
    process.join()
    try:
        assert process.exitcode == -signal.SIGKILL
        assert os.listdir(tmp_path) == [run_folder.LOCK_FILE]
        assert run_folder.holder(str(tmp_path)) is None
        with run_folder.locked(str(tmp_path)):
            assert run_folder.holder(str(tmp_path)) == name_of(os.getpid())
    finally:
        over.set()


def contend(folder: str, rounds: int, clashes) -> None:
    """Take the lock this many times; count who else is inside."""
    while rounds:
        try:
            with run_folder.locked(folder):
                inside = os.path.join(folder, "inside")
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    time.sleep(0.001)
                    os.unlink(inside)
                except OSError:
                    clashes.value += 1
        except UserError:
            continue
        rounds -= 1


@needs_fork
def test_of_several_processes_one_is_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "ATTEMPT_INTERVAL_S", 0.0005)
    context = multiprocessing.get_context("fork")
    clashes = context.Value("i")
    arguments = (str(tmp_path / "run"), 50, clashes)
    processes = [context.Process(target=contend, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert clashes.value == 0 and os.listdir(tmp_path / "run") == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / run_folder.LOCK_FILE).mkdir(parents=True)
    for name, reason in (("file", "File exists"), ("folder", "Is a directory")):
        expected = f"OUTPUT_DIR: expected a folder that can be written, got .*{name}.*{reason}"
        with pytest.raises(UserError, match=expected), run_folder.locked(str(tmp_path / name)):
            pass
        assert run_folder.holder(str(tmp_path / name)) is None


def test_without_locks_there_is_a_warning_and_no_lock(tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with run_folder.locked(str(tmp_path)), run_folder.locked(str(tmp_path)):
        assert "on a file system without locks (Function not impl" in capsys.readouterr().out
        assert run_folder.holder(str(tmp_path)) is None
    monkeypatch.setattr(run_folder, "fcntl", None)  # Windows
    with run_folder.locked(str(tmp_path)):
        assert run_folder.holder(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
