"""Several hosts on this machine, on links of a known speed, to run MPI programs over. Needs root.

    python tests/emulated_hosts.py --mpi openmpi -- -m collectives.bench --bytes 1M
    python tests/emulated_hosts.py --report

A host has its own network, host name, shared memory and semaphores, so that MPI takes it for a
machine of its own; processors, files and process ids are this machine's. The links are those of
emulated_switch, the settings of the MPIs those of emulated_mpi. mpirun runs on a further host;
instead of ssh it gets a script that enters one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulated_mpi
import emulated_switch as switch
from emulated_mpi import ENVIRONMENTS, HostsError
from helpers import OPEN_MPI_AS_ROOT

RATE = "200mbit"
LATENCY_SECONDS = 500e-6
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}

_ENTER_HOST = """\
#!/bin/sh
# ssh [options] host command
while [ "${{1#-}}" != "$1" ]; do shift; done
host=${{1#h}}
case "$1" in *.*) host=$((${{1##*.}} - 1)) ;; esac
shift
exec ip netns exec {prefix}-h"$host" unshare --uts --mount --ipc sh -c "
    echo h$host > /proc/sys/kernel/hostname
    mount --bind {names} /etc/hosts
    mount -t tmpfs tmpfs /dev/shm
    $*"
"""


def possible() -> str | None:
    """Why hosts cannot be emulated here, or None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "emulated hosts need Linux and root"
    for command in ("ip", "unshare", "mount"):
        if shutil.which(command) is None:
            return f"emulated hosts need the command {command} (packages iproute2, util-linux)"
    new = ["unshare", "--net", "--uts", "--mount", "--ipc", "true"]
    if subprocess.run(new, capture_output=True).returncode != 0:
        return "emulated hosts need namespaces, which this kernel or container refuses"
    try:
        os.close(switch.open_tap("emu%d"))
    except OSError as error:
        return f"emulated hosts need TAP devices: /dev/net/tun: {error.strerror}"
    return None


def bytes_per_second(rate: str) -> float:
    """200mbit as bytes per second. Raises HostsError if it does not look like that."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", rate)
    if not found or float(found[1]) == 0:
        raise HostsError(f"rate must look like 200mbit or 1gbit, got {rate!r}")
    return float(found[1]) * UNITS[found[2]] / 8


@dataclass(frozen=True)
class Hosts:
    """Hosts that are up."""

    prefix: str
    num_hosts: int
    agent: Path

    def command(
        self, mpi: str, *program: str | Path, ranks_per_host: int = 1, num_hosts: int | None = None
    ) -> list[str]:
        """The words that run `program`, arguments of a Python with this MPI, over the hosts."""
        number = self.num_hosts if num_hosts is None else num_hosts
        if not 1 <= number <= self.num_hosts:
            raise HostsError(f"num_hosts must be in [1, {self.num_hosts}], got {number}")
        if ranks_per_host < 1:
            raise HostsError(f"ranks_per_host must be at least 1, got {ranks_per_host}")
        enter = ["ip", "netns", "exec", f"{self.prefix}-{switch.HEAD}"]
        mpirun = emulated_mpi.line(mpi, self.agent, number, ranks_per_host)
        return [*enter, *mpirun, *map(str, program)]

    def run(
        self,
        mpi: str,
        *program: str | Path,
        ranks_per_host: int = 1,
        num_hosts: int | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; `options` are those of subprocess.run."""
        words = self.command(mpi, *program, ranks_per_host=ranks_per_host, num_hosts=num_hosts)
        cache = {"XDG_CACHE_HOME": str(self.agent.parent)}  # what is measured ends with the hosts
        environment = options.pop("env", os.environ) | OPEN_MPI_AS_ROOT | cache
        nothing = subprocess.DEVNULL
        return subprocess.run(words, env=environment, text=True, stdin=nothing, **options)


@contextlib.contextmanager
def emulated_hosts(
    num_hosts: int = 4, rate: str = RATE, latency_seconds: float = LATENCY_SECONDS
) -> Iterator[Hosts]:
    """Hosts h0, h1, ... until the block ends, however it does, and all that runs on them."""
    if reason := possible():
        raise HostsError(reason)
    if not 1 <= num_hosts <= switch.MOST_HOSTS:
        raise HostsError(f"num_hosts must be in [1, {switch.MOST_HOSTS}], got {num_hosts}")
    if not 0 <= latency_seconds < 1:
        raise HostsError(f"latency must be in [0, 1) seconds, got {latency_seconds}")
    words = [sys.executable, "-I", switch.__file__, num_hosts, bytes_per_second(rate)]
    running = subprocess.Popen(
        [*map(str, words), str(latency_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the program on the hosts; this one follows us
    )
    prefix = switch.prefix_of(running.pid)
    try:
        if running.stdout.readline() != "ready\n":
            raise HostsError(f"hosts cannot be emulated: {running.stderr.read().strip()}")
        yield Hosts(prefix, num_hosts, _agent(prefix, num_hosts))
    finally:
        running.communicate()  # closes its standard input
        switch.remove(prefix, num_hosts)  # in case it was killed


def _agent(prefix: str, num_hosts: int) -> Path:
    folder = switch.folder_of(prefix)
    folder.mkdir(mode=0o700)
    agent, names = folder / "enter", folder / "hosts"
    addresses = [f"{switch.address(host)} h{host}\n" for host in range(num_hosts)]
    names.write_text("".join(["127.0.0.1 localhost\n", *addresses]))
    agent.write_text(_ENTER_HOST.format(prefix=prefix, names=names))
    agent.chmod(0o755)
    return agent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/emulated_hosts.py", description=__doc__.splitlines()[0],
        usage="%(prog)s [options] -- PROGRAM [ARGUMENT ...]", allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--mpi", choices=ENVIRONMENTS, help="(default mpich; both in a report)")
    parser.add_argument("--hosts", type=int, default=4, help="(default 4)")
    parser.add_argument("--ranks-per-host", type=int, default=1, help="(default 1)")
    parser.add_argument("--rate", default=RATE, help=f"of each line, each way (default {RATE})")
    parser.add_argument("--latency", type=float, default=LATENCY_SECONDS, metavar="SECONDS",
                        help=f"(default {LATENCY_SECONDS})")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="all-reduces beside the cost model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report's rows as JSON")
    parser.add_argument("program", nargs="*", help="what follows `python`")
    options = parser.parse_args()
    if bool(options.program) == options.report:
        parser.error("needs either -- PROGRAM or --report")
    if options.report and (options.hosts < 2 or options.ranks_per_host != 1):
        parser.error("a report needs 2 or more hosts, each with one rank")
    if options.json and not options.report:
        parser.error("--json is for --report; a program has its own arguments, after --")
    return options


def main() -> int:
    """The command line; the exit code is that of mpirun."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with emulated_hosts(options.hosts, options.rate, options.latency) as hosts:
            if options.report:
                from emulated_report import report

                return report(hosts, options)
            mpi, per_host = options.mpi or "mpich", options.ranks_per_host
            code = hosts.run(mpi, *options.program, ranks_per_host=per_host).returncode
    except HostsError as error:
        print(f"emulated_hosts: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
