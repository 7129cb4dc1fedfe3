"""The network between emulated hosts: a switch in user space, with every host on its own line.

A host is a network namespace whose only device, eth0, is a TAP: what it sends is read here, frame
by frame, and written to the host that it is meant for when the wire would have brought it there.

    host i --line out--+          A frame of n bytes occupies the line out of its sender and the
                       | switch   line into its receiver for n / rate each, at the same time where
    host j <--line in--+          both are free, and takes `latency` besides.

Both directions of a line are independent, nothing is lost, and frames that find a line taken wait
in order: the link of alpha + n beta that the costs of all-reduces are stated for. The kernel's own
limiter, tbf, is not: a line that was idle has saved up a burst, so that messages of 4 KB took half
their time in a tree; nor has it a latency, without netem, which many kernels lack.

The process serves until its standard input is closed, if only by the death of who started it, and
then ends what still runs on the hosts and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SUBNET = "10.77.0"
HEAD = "head"  # the host of mpirun
HEAD_ADDRESS = f"{SUBNET}.254"
MOST_HOSTS = 200
LONGEST_FRAME = 9014
READ_AHEAD_SECONDS = 5e-4  # how late a frame may be read without a gap on its line

# Reno is allowed in every namespace. Without the other two a connection that was idle starts slowly
# again, and one that starts remembers the losses of the one before.
TCP = "tcp_congestion_control=reno tcp_slow_start_after_idle=0 tcp_no_metrics_save=1"


def prefix_of(process: int) -> str:
    """What the names of a switch begin with, so that two switches never meet."""
    return f"emu{process}"


def folder_of(prefix: str) -> Path:
    """A folder that is removed together with the hosts."""
    return Path(tempfile.gettempdir(), prefix)


def names(prefix: str, num_hosts: int) -> list[str]:
    """The namespaces: the hosts in order, then that of mpirun."""
    return [f"{prefix}-h{host}" for host in range(num_hosts)] + [f"{prefix}-{HEAD}"]


def address(host: int) -> str:
    """The address of a host."""
    return f"{SUBNET}.{host + 1}"


def open_tap(name: str) -> int:
    """Make a TAP device, which lasts until the file that is returned is closed."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    except OSError:
        os.close(file)
        raise
    return file


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def set_up(prefix: str, num_hosts: int) -> list[int]:
    """Make the namespaces, each with a TAP as its eth0; the files of these, in the same order."""
    files = []
    for number, name in enumerate(names(prefix, num_hosts)):
        device = f"{prefix}t{number}"
        files.append(open_tap(device))
        _ip("netns", "add", name)
        _ip("link", "set", device, "netns", name)
        _ip("-n", name, "link", "set", device, "name", "eth0", "mtu", "9000",
            "txqueuelen", "4000", "address", _hardware_address(number).hex(":"))  # fmt: skip
        own = HEAD_ADDRESS if number == num_hosts else address(number)
        _ip("-n", name, "addr", "add", f"{own}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "eth0", "up")
        for setting, value in (one.split("=") for one in TCP.split()):
            _ip("netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{setting}")
    return files


def _hardware_address(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def remove(prefix: str, num_hosts: int) -> None:
    """Delete the namespaces of this prefix; first end, by their ids, the processes in them."""
    for name in names(prefix, num_hosts):
        if not Path("/run/netns", name).exists():
            continue
        while running := processes(name):  # again, for those that were started meanwhile
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.01)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    shutil.rmtree(folder_of(prefix), ignore_errors=True)


def processes(name: str) -> list[int]:
    """The ids of the processes in a namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(process) for process in listed.stdout.split()]


def forward(files: list[int], bytes_per_second: float, latency: float, until: int) -> None:
    """Carry frames between the TAPs until the file `until` can be read."""
    port_of = {file: port for port, file in enumerate(files)}
    out_free = [0.0] * len(files)  # when the line out of a host is free again
    in_free = [0.0] * len(files)
    waiting: list[tuple[float, int, int, bytes]] = []  # time, number, receiver, frame
    number = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, receiver, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # its host is gone, or not up yet
                os.write(files[receiver], frame)
            now = time.monotonic()
        # A host whose line is taken for long is not read, so that its frames queue up on its side.
        open_files = [until]
        wake = waiting[0][0] if waiting else now + 1
        for file, free in zip(files, out_free, strict=True):
            if free <= now + READ_AHEAD_SECONDS:
                open_files.append(file)
            else:
                wake = min(wake, free - READ_AHEAD_SECONDS)
        readable, _, _ = select.select(open_files, (), (), max(0.0, wake - now))
        now = time.monotonic()
        for file in readable:
            if file == until:
                return
            try:
                frame = os.read(file, LONGEST_FRAME)
            except BlockingIOError:
                continue
            sender, seconds = port_of[file], len(frame) / bytes_per_second
            out_free[sender] = max(now, out_free[sender]) + seconds
            for receiver in _receivers(frame, sender, len(files)):
                in_free[receiver] = max(out_free[sender] + latency, in_free[receiver] + seconds)
                number += 1
                heapq.heappush(waiting, (in_free[receiver], number, receiver, frame))


def _receivers(frame: bytes, sender: int, num_ports: int) -> list[int]:
    if frame[0] & 1:  # to all: the question who has an address
        return [port for port in range(num_ports) if port != sender]
    return [frame[5]] if frame[5] < num_ports else []


def main() -> int:
    """Arguments: hosts, bytes per second, seconds of latency. Prints `ready` when they are up."""
    num_hosts, rate, latency = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    prefix = prefix_of(os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        files = set_up(prefix, num_hosts)
        with contextlib.suppress(OSError):  # without the right to it, links are less even
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        print("ready", flush=True)
        forward(files, rate, latency, until=sys.stdin.fileno())
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)}: {error.stderr.strip()}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"no TAP device: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        remove(prefix, num_hosts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
