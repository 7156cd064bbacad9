"""What only a CUDA device runs is checked by a script, which says so where there is none."""

import pytest
import torch

from benchmarks import cuda_paths


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device runs the checks")
def test_without_a_cuda_device_the_script_says_so(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cuda_paths"])
    assert cuda_paths.main() == 0
    assert capsys.readouterr().out == "skipped: torch sees no CUDA device\n"


def test_each_check_is_one_line_and_a_failure_is_the_exit_code(capsys, monkeypatch):
    def fail(folder):
        raise ValueError("no\nmemory")

    monkeypatch.setattr("sys.argv", ["cuda_paths"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_paths, "checks", lambda: {"a": lambda folder: "fine", "b": fail})
    assert cuda_paths.main() == 1
    assert capsys.readouterr().out == "ok    a: fine\nFAIL  b: ValueError: no memory\n"
