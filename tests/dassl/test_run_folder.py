import errno
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

import pytest

from dassl.engine import curves, run_folder, same_run
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
    assert same_run.read_config(str(folder)) is None
    config = {"OPTIM": {"LR": 0.1, "STEPSIZE": [1, 2]}, "VERSION": 1, "DATASET": {"NAME": "é"}}
    run_folder.begin(str(folder), config, [])
    (folder / run_folder.RESULTS_FILE).touch()
    (folder / "predictions.npz").touch()
    run_folder.begin(str(folder), config, [])
    assert same_run.read_config(str(folder)) == config
    assert [path.name for path in folder.iterdir()] == [run_folder.CONFIG_FILE]


# Places -----------------------------------------------------------------------------------------


def occupy(path, kind: str) -> None:
    """Put something else than a file at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "loop" else "nowhere")


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling"])
def test_what_is_no_file_where_a_run_writes_is_found_at_once(tmp_path, kind):
    reason = "Is a directory" if kind == "folder" else "Not a regular file"
    for name in ("log.txt", "config.yaml", "results.json", "resume.pth.tar", "predictions.npz"):
        folder = tmp_path / name
        occupy(folder / name, kind)
        with pytest.raises(UserError) as error, run_folder.locked(str(folder)):
            pass
        assert str(error.value) == f"cannot write '{folder / name}': {reason}"
        assert os.listdir(folder) == [name]
    for name in ("checkpoint", "model.pth.tar-2", "model-best.pth.tar"):
        path = tmp_path / "run" / name.replace(".", "_") / name
        occupy(path, kind)
        with pytest.raises(UserError) as error:
            run_folder.begin(str(tmp_path / "run"), {}, [path.parent.name])
        assert str(error.value) == f"cannot write '{path}': {reason}"
    assert "config.yaml" not in os.listdir(tmp_path / "run")


@pytest.mark.parametrize("name", ["tensorboard", "model"])
def test_what_is_no_folder_where_a_run_has_one_is_found_before_training(tmp_path, name):
    for kind in ("file", "dangling", "loop"):
        if kind == "file":
            (tmp_path / name).touch()
        else:
            occupy(tmp_path / name, kind)
        with pytest.raises(UserError) as error:
            run_folder.begin(str(tmp_path), {}, ["model"])
        assert str(error.value) == f"cannot write '{tmp_path / name}': Not a directory"
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_temporary_files_of_a_killed_run_go_and_nothing_else(tmp_path):
    left = [
        ".results.json.original",
        "a.tmp-12345678",
        "model/.model.pth.tar-2.tmp-1234567",
        "model/deeper/.a.tmp-12345678",
        "other run/.lock",
        "other run/.config.yaml.tmp-12345678",
    ]
    gone = [".resume.pth.tar.tmp-abcd_123", "model/.model.pth.tar-2.tmp-12345678"]
    gone += ["model/.checkpoint.tmp-12345678", ".a\nb.npz.tmp-12345678"]
    for name in [*left, *gone]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("model/deeper")
    with run_folder.locked(str(tmp_path)):
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        names = {str(path.relative_to(tmp_path)) for path in found}
        assert names == {*left, run_folder.LOCK_FILE}


# Curves -----------------------------------------------------------------------------------------


def points(folder) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(x.step, x.value) for x in EventAccumulator(str(folder)).Reload().Scalars("loss")]


def test_curves_are_on_the_disk_at_once_and_cut_where_a_run_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "_numbers", itertools.count(9))  # names are compared as text
    writer = run_folder.open_tensorboard(str(tmp_path), None)
    for step in range(3):
        writer.add_scalar("loss", step / 2, step)
        assert points(tmp_path)[-1] == (step, step / 2)
    second = run_folder.open_tensorboard(str(tmp_path), 2)
    second.add_scalar("loss", 4.0, 2)
    writer.close()
    second.close()
    assert points(tmp_path) == [(0, 0.0), (1, 0.5), (2, 4.0)]
    assert len(os.listdir(tmp_path)) == 2


def test_a_full_disk_ends_the_curves_with_one_line_and_no_thread(tmp_path):
    resource = pytest.importorskip("resource")
    threads = threading.active_count()
    writer = run_folder.open_tensorboard(str(tmp_path), None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            for step in range(10):
                writer.add_scalar("loss", 1.0, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (name,) = os.listdir(tmp_path)
    assert str(error.value) == f"cannot write '{tmp_path}/{name}': File too large"
    assert threading.active_count() == threads
    writer.add_scalar("loss", 1.0, 11)
    writer.close()
    assert [step for step, _ in points(tmp_path)] == list(range(len(points(tmp_path)))) != []


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


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as nobody may not come here by the path
    tmp_path.chmod(0o755)
    os.mkdir("run")
    os.chmod("run", 0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        for folder, path in (("run", "run/.lock"), ("run/new", "run/new")):
            with pytest.raises(UserError) as error, run_folder.locked(folder):
                pass
            assert str(error.value) == (
                f"OUTPUT_DIR: expected a folder that can be written, got '{folder}': "
                f"cannot write '{path}': Permission denied"
            )
            assert run_folder.holder(folder) is None
    finally:
        if is_root:
            os.seteuid(0)
    assert os.listdir("run") == []


def test_a_pipe_or_a_link_is_no_lock(tmp_path):
    os.mkfifo(tmp_path / run_folder.LOCK_FILE)
    assert run_folder.holder(str(tmp_path)) is None  # and does not wait for a writer
    other = tmp_path / "other"
    other.mkdir()
    (other / run_folder.LOCK_FILE).symlink_to("elsewhere")
    with pytest.raises(UserError, match=".lock': Too many levels"), run_folder.locked(str(other)):
        pass
    assert os.listdir(other) == [run_folder.LOCK_FILE]


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
