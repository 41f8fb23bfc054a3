"""In place of Python and torchrun, which take 10 and 20 s to import the frameworks: forks of a process that did."""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
from processes import ON_CPU, forking, forkserver, wait

GRACE = 30  # seconds from SIGTERM to SIGKILL, as torchrun's


class Forked:
    """What `subprocess.Popen` is for a script, or for a torchrun of so many ranks.

    Args:
        argv: the script, or "-m" and a module, and its arguments.
        world: ranks; 1 is without torchrun.
        errors: file to which stderr is added.
        out: file to which stdout is added.
        env: more environment.
        cwd: folder.
    """

    def __init__(self, argv, world, errors, *, out=os.devnull, env=(), cwd=None):
        self.args = [str(word) for word in argv]
        arguments = (self.args, world, str(errors), str(out), dict(env), cwd)
        self._process = forkserver.Process(target=_launch, args=arguments)
        with forking():
            self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode


def run(argv, world, timeout=300, **more):
    """As `processes.run`."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        process = Forked(argv, world, errors, out=out, **more)
        code = wait(process, timeout, errors.read_text)
        return subprocess.CompletedProcess(process.args, code, out.read_text(), errors.read_text())


def _launch(argv, world, errors, out, env, cwd):
    os.setsid()
    os.environ.update(env)
    os.chdir(cwd or ".")
    for file, number in ((out, 1), (errors, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if world == 1:
        _be(argv)
    _launch_ranks(argv, world)


def _launch_ranks(argv, world):
    """Starts the ranks; if one fails, or SIGTERM comes, the others get SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    torch.set_num_threads(int(ON_CPU["OMP_NUM_THREADS"]))  # which torch reads when it is imported
    os.environ.update(
        ON_CPU, WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0", TORCHELASTIC_RUN_ID="forked"
    )
    ranks = {}
    for rank in range(world):
        pid = os.fork()
        if not pid:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            _be(argv)
        ranks[pid] = rank
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
        rank = ranks.pop(pid)
        if status and not failed:
            print(f"rank {rank}: exitcode: {os.waitstatus_to_exitcode(status)}", file=sys.stderr, flush=True)
            end()
    os._exit(int(failed))


def _be(argv):
    """Runs the script, to its end."""
    code = 1
    try:
        warnings.simplefilter("ignore")
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            sys.path.insert(0, os.path.dirname(argv[0]))
            runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)  # gloo's threads may abort a process that leaves otherwise: `processes.leave`
