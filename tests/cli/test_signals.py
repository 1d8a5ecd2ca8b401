"""A signal ends any command as Ctrl-C does: its own exit status, no traceback, nothing unfinished left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dehvf_kit.cli.console import reporting

NAP = """
import sys, time, types
from pathlib import Path
from dehvf_kit.cli import main
from dehvf_kit.utils.atomic import whole_folder

def nap() -> None:
    with whole_folder(Path("out")) as part:
        (part / "half").write_text("half")
        print("napping", flush=True)
        time.sleep(60)

def speak() -> None:
    for stream in (sys.stdout, sys.stderr):
        for _ in range(3):
            print("figures " * 2000, file=stream, flush=True)
    Path("file").write_text("whole")

sys.modules["nap"] = types.ModuleType("nap")
sys.modules["nap"].nap, sys.modules["nap"].speak = nap, speak
main.Commands.builtin = (("nap", "nap:nap", "sleeps"), ("speak", "nap:speak", "prints, then writes"))
sys.argv = ["dehvf-kit", *(sys.argv[1:] or ["nap"])]
main.main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_takes_away_what_is_unfinished(number: signal.Signals, status: int, tmp_path: Path) -> None:
    handler = "default_int_handler" if number == signal.SIGINT else "SIG_DFL"  # a background job ignores SIGINT
    usual = f"import signal\nsignal.signal({number:d}, signal.{handler})\n"
    with subprocess.Popen([sys.executable, "-c", usual + NAP], cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "napping\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said, list(tmp_path.iterdir())) == (status, "interrupted\n", [])


def test_nohup_keeps_a_command_running(tmp_path: Path) -> None:
    ignored = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with subprocess.Popen([sys.executable, "-c", ignored + NAP], cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "napping\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(60) == 143


def test_work_goes_on_where_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", NAP, "speak"], cwd=tmp_path, stdout=-1, stderr=-1) as process:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        assert process.wait(60) == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_a_full_disk_behind_the_output_is_told_once(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", NAP.replace("2000", "1"), "speak"], cwd=tmp_path, stdout=full, stderr=-1, text=True
        )
    assert ended.returncode == 1 and ended.stderr.count("No space left on device; make room") == 1, ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with reporting() as report:
        report("training", 0, 2)
        report("training", 2, 2, "loss 0.5")
    assert "loss 0.5" in capsys.readouterr().err
