"""In place of torchrun, for hundreds of starts: ranks are forked from a process that has imported the frameworks."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback

from processes import forking, forkserver

GRACE = 30  # seconds from SIGTERM to SIGKILL, as torchrun's


class Forked:
    """What `subprocess.Popen` is for a torchrun of two ranks."""

    def __init__(self, argv, env, errors):
        self.args = argv
        self._process = forkserver.Process(target=_launch, args=(argv, env, str(errors)))
        with forking():
            self._process.start()
        self.pid = self._process.pid

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode


def _launch(argv, env, errors, world=2):
    """Starts the ranks; if one fails, or SIGTERM comes, the others get SIGTERM."""
    os.setsid()
    os.environ.update(env, WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), TORCHELASTIC_RUN_ID="forked")
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    ranks = set()
    for rank in range(world):
        pid = os.fork()
        if not pid:
            _be(rank, argv)
        ranks.add(pid)
    failed = False

    def end(*_):
        nonlocal failed
        failed = True
        for pid in ranks:
            os.kill(pid, signal.SIGTERM)
        signal.alarm(GRACE)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, lambda *_: [os.kill(pid, signal.SIGKILL) for pid in ranks])
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status and not failed:
            end()
    os._exit(int(failed))


def _be(rank, argv):
    """Runs the script as this rank."""
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(argv[0]))
        runpy.run_path(argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # a script that ends well leaves by itself
