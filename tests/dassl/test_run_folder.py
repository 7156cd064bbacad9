from dassl.engine import run_folder


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
    run_folder.begin(str(folder), config)
    (folder / run_folder.RESULTS_FILE).touch()
    (folder / "predictions.npz").touch()
    run_folder.begin(str(folder), config)
    assert run_folder.read_config(str(folder)) == config
    assert [path.name for path in folder.iterdir()] == [run_folder.CONFIG_FILE]
