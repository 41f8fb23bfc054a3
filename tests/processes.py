"""Processes that a test starts: none outlives its test, none hangs without saying where."""

import contextlib
import faulthandler
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TESTS = Path(__file__).parent
ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
forkserver = mp.get_context("forkserver")
forkserver.set_forkserver_preload(["processes", "forked_imports"])


@contextlib.contextmanager
def forking():
    """In it, processes may be started by `forkserver`, with the imports there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # else, Python 3.11 does not find the imports
        yield


def torchrun(world):
    """The start of a command line that runs a script on so many processes of this machine."""
    if world == 1:
        return [sys.executable]
    local = ["--standalone", "--local-addr", "127.0.0.1"]  # by name would ask a resolver
    return [sys.executable, "-m", "torch.distributed.run", *local, "--nproc-per-node", str(world)]


def kill_tree(pid):
    """`kill -9` a process and all that it started, in sessions of their own or not."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family[1:], timeout=20)  # the parent's exit code is its Popen's to take


def wait(process, timeout, errors=lambda: ""):
    """Exit code of a Popen; past its time it is killed with its children, and the test fails with `errors()`."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        process.wait()
        raise AssertionError(f"{process.args} did not end in {timeout} s:\n{errors()[-8000:]}") from None


def run(command, timeout=300, **kwargs):
    """As `subprocess.run` with text; to files, since a pipe that a grandchild keeps open would never end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:

        def read(file):
            file.seek(0)
            return file.read()

        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=err, **kwargs)
        code = wait(process, timeout, lambda: read(out) + read(err))
        return subprocess.CompletedProcess(command, code, read(out), read(err))


def leave():
    """The end of a script of several ranks whose work is done and written.

    Its exit code is 0 from here on: gloo's threads may abort a process that leaves without this, and did once in about
    500 even after the group was destroyed, while the interpreter was torn down ("terminate called without an active
    exception").
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def spawn(function, world, out, timeout=180):
    """`function(rank, world, out)` on so many processes, in an initialized gloo group."""
    store = Path(out) / "store"
    arguments = (function, world, str(store), str(out), timeout)
    with forking():
        context = mp.start_processes(_started, arguments, world, join=False, start_method="forkserver")
    deadline = time.monotonic() + timeout + 30
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, f"{function.__name__} did not end in {timeout + 30} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _started(rank, function, world, store, out, timeout):
    faulthandler.dump_traceback_later(timeout, exit=True)
    os.environ.update(ON_CPU, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # Accelerate asks that they are there
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    function(rank, world, out)
    dist.destroy_process_group()
