"""The first seconds of train.py: a mistake in the options is reported before imports, Ctrl-C prints no traceback."""

import signal
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "train.py"


def test_mistake_in_the_options_is_reported_before_pytorch_is_imported(command, tmp_path):
    code = (
        f"import runpy, sys; sys.argv[:] = ['train.py', '--opt', 'nothing.yml']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "finally: print({'torch', 'cv2', 'scipy', 'numpy'} & sys.modules.keys())"
    )
    done = command("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr == "train.py: error: option file nothing.yml does not exist\n"


def test_ctrl_c_while_pytorch_is_imported_prints_one_line(launch, tmp_path):
    with launch("train.py", "--opt", SCRIPT.parent / "options/train_rrdb_psnr.yml", cwd=tmp_path, new=True) as process:
        while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "train.py: interrupted\n")
