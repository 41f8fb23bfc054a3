"""Two hosts, each a network namespace, joined by a veth pair: torchrun with c10d rendezvous, a kill, and on."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from processes import ON_CPU, kill_tree, wait
from test_kill import STEPS, WORKER, skip_before_transformers_5, trace

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    names = [f"greedylr{os.getpid()}{end}" for end in "ab"]
    links = [f"gl{os.getpid()}{end}" for end in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
            for name, link, address in zip(names, links, ADDRESSES, strict=True):
                ip("link", "set", link, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
                ip("-n", name, "link", "set", link, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"network namespaces are not allowed here: {getattr(error, 'stderr', error)!r}")
        yield list(zip(names, links, strict=True))
    finally:
        for name in names:
            pids = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True).stdout
            for pid in pids.split():
                kill_tree(int(pid))
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


RULE = "slope"


def launch(hosts, framework, out, run, *more):
    processes = []
    for host, link in hosts:
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", run]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29411", "--max-restarts", "0"]
        # the namespaces have no names for each other: speak by address
        torchrun += ["--local-addr", ADDRESSES[len(processes)], "--rdzv-conf", f"is_host={int(not processes)}"]
        command = [
            "ip",
            "netns",
            "exec",
            host,
            sys.executable,
            *torchrun,
            WORKER,
            framework,
            RULE,
            str(out),
            str(STEPS[RULE]),
            *more,
        ]
        env = {**os.environ, **ON_CPU, "GLOO_SOCKET_IFNAME": link}
        with (out / f"errors-{len(processes)}").open("a") as errors:
            processes.append(subprocess.Popen(command, env=env, stdout=errors, stderr=errors, start_new_session=True))
    return processes


def errors(out):
    return "\n".join((out / f"errors-{i}").read_text()[-3000:] for i in range(2))


def finish(processes, out):
    codes = [wait(process, 180, lambda: errors(out)) for process in processes]
    assert codes == [0, 0], errors(out)


@pytest.mark.parametrize("framework", ["transformers"])
def test_train_on_both_kill_one_restart(hosts, framework, tmp_path):
    skip_before_transformers_5()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(launch(hosts, framework, whole, "whole"), whole)

    processes = launch(hosts, framework, killed, "first")
    file, deadline = killed / "trace-1.jsonl", time.time() + 120
    while not file.exists() or file.read_text().count("\n") <= 9:
        assert processes[1].poll() is None, errors(killed)
        assert time.time() < deadline, errors(killed)
        time.sleep(0.01)
    kill_tree(processes[1].pid)  # one machine is gone
    assert processes[1].wait(timeout=20) != 0
    assert wait(processes[0], 120, lambda: errors(killed)) != 0  # the other one notices

    finish(launch(hosts, framework, killed, "second", "resume"), killed)
    assert trace(killed, RULE) == trace(whole, RULE)
    first, second = trace(killed, RULE)
    assert [entry["lr"] for entry in first] == [entry["lr"] for entry in second]
