"""Commands in forked processes: what a test sees of them is what it would see of a new interpreter."""

import json
import signal

PROGRAM = """
import json, os, signal, sys, threading
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["RANK"], __name__, "torch" in sys.modules]))
print("careful", file=sys.stderr)
threading.Timer(0.1, print, ["the end"]).start()
if sys.argv[1] == "wait":
    sys.stdout.flush()
    signal.pause()
sys.exit(int(sys.argv[1]))
"""


def test_folder_environment_output_and_exit_code_are_those_of_a_command(tmp_path, launch):
    (tmp_path / "program.py").write_text(PROGRAM)
    for new in (False, True):
        process = launch(tmp_path / "program.py", 3, cwd=tmp_path, new=new, RANK=7)
        stdout, stderr = process.communicate(timeout=60)
        first, last = stdout.splitlines()
        assert json.loads(first) == [["3"], str(tmp_path), "7", "__main__", not new]
        assert (last, stderr, process.returncode) == ("the end", "careful\n", 3)


def test_signals_arrive_and_end_the_process(tmp_path, launch):
    (tmp_path / "program.py").write_text(PROGRAM)
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = launch(tmp_path / "program.py", "wait", cwd=tmp_path, RANK=0)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == -number


def test_mistake_is_told_in_the_same_words(tmp_path, command):
    forked, new = (command("train.py", "--opt", "nothing.yml", cwd=tmp_path, new=new) for new in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)
    assert new.returncode == 2
