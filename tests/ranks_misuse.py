"""Run under mpirun by test_collectives: what goes wrong is said on every rank, and nothing hangs.

Each case prints one line a rank: its name and the error.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

import collectives
from collectives import calls
from collectives.transports import shm
from collectives.transports.mpi import world

comm = world()
last = comm.rank == comm.size - 1


def make(name="ring", length=10, dtype="int32", **more):
    return collectives.make_plan(name, comm, length, dtype, **more)


def other_algorithm():
    make("tree" if last else "ring")


def other_length():
    make(length=11 if last else 10)


def other_dtype():
    make(dtype="int64" if last else "int32")


def other_transport():
    make(transport="shm" if last else "mpi")


def unknown_on_one_rank():
    make("rnig" if last else "ring")


def too_many_degrees():
    make("butterfly:2,2,2,2")


def strange_dtype():
    make(dtype="float16")


def negative_length():
    make(length=-1)


def transport_of_a_vendor():
    make("mpi", transport="shm")


def not_contiguous():
    make(buffer=np.zeros(20, np.int32)[::2])


def read_only():
    array = np.zeros(10, np.int32)
    array.flags.writeable = not last
    make(buffer=array)


def other_shape():
    make(buffer=np.zeros((2, 5), np.int32))


def own_buffer_in_shared_memory():
    make(buffer=np.zeros(10, np.int32), transport="shm")


def run_after_close():
    plan = make()
    plan.close()
    plan.close()  # twice is no mistake
    plan.run()


def started_twice():
    plan = make(transport="mpi")
    plan.start()
    try:
        plan.start()
    finally:
        plan.wait()
        plan.close()


def closed_while_running():
    plan = make(transport="shm")
    plan.start()
    try:
        plan.close()
    finally:
        plan.wait()
        plan.close()


def wait_without_start():
    make().wait()


def buffer_assigned():
    make().buffer = np.ones(10, np.int32)


def narrow_length():
    """200 * 4 does not fit into 8 bits."""
    with make("butterfly:2", np.uint8(200), transport="mpi") as plan:
        plan.buffer[:] = 1
        plan.run()
        assert (plan.buffer == comm.size).all()
    raise RuntimeError("none: all is well")


def waited_in_another_order():
    """Who waits for one all-reduce goes on with the others, too; so does one who runs another."""
    for transport in collectives.TRANSPORTS:
        first, second = make(transport=transport), make("tree", 7, transport=transport)
        for plan in (first, second):
            plan.buffer[:] = 1
            plan.start()
        for plan in (second, first) if last else (first, second):
            plan.wait()
        assert (first.buffer == comm.size).all() and (second.buffer == comm.size).all()
        first.start()
        if last:
            first.wait()
            second.run()
        else:
            second.run()
            first.wait()
        assert (first.buffer == comm.size**2).all() and (second.buffer == comm.size**2).all()
        for plan in (first, second):
            plan.close()
    raise RuntimeError("none: all is well")


def complete_already():
    """Whether a look found it complete depends on the time; what comes then must not."""
    for transport in collectives.TRANSPORTS:
        with make(transport=transport) as plan:
            plan.start()
            while not plan.test():
                pass
            assert plan.test()
            plan.wait()
            plan.wait(timeout=1)
            plan.run()
    raise RuntimeError("none: all is well")


def negative_timeout():
    plan = make(transport="mpi")
    plan.start()
    try:
        plan.wait(timeout=-1)
    finally:
        plan.wait()
        plan.close()


def closed_instead_of_run():
    plan = make(debug=True)
    plan.close() if last else plan.run()


def no_halves():
    make("recursive-doubling", halves=True)


def halves_of_a_vendor():
    with make("mpi") as plan:
        plan.reduce_scatter()


def second_half_first():
    with make(transport="shm") as plan:
        plan.run()
        plan.all_gather()


def halfway(transport):
    plan = make(transport=transport)
    plan.buffer[:] = 1
    plan.reduce_scatter()
    return plan


def complete(plan):
    """A refused call between the halves has changed nothing."""
    plan.all_gather()
    assert (plan.buffer == comm.size).all()
    plan.close()


def first_half_twice():
    plan = halfway("shm")
    try:
        plan.reduce_scatter()
    finally:
        complete(plan)


def run_between_the_halves():
    plan = halfway("mpi")
    try:
        plan.run()
    finally:
        complete(plan)


def start_between_the_halves():
    plan = halfway("shm")
    try:
        plan.start()
    finally:
        complete(plan)


def half_after_close():
    plan = halfway("shm")
    plan.close()  # who gives up need not come to the end
    plan.reduce_scatter()


def half_and_run():
    plan = make(debug=True)
    plan.reduce_scatter() if last else plan.run()


def halves_on_one_rank():
    make(halves=last)


def halves_while_another_is_started():
    """Who is in a half goes on with what is started: its peers may be waiting for that."""
    for transport in collectives.TRANSPORTS:
        first, second = make("tree", 7, transport=transport), make(transport=transport)
        first.buffer[:] = second.buffer[:] = 1
        first.start()
        if last:
            first.wait()
        second.reduce_scatter()
        second.buffer[second.owned] += 1
        second.all_gather()
        first.wait()
        assert (first.buffer == comm.size).all() and (second.buffer == comm.size + 1).all()
        for plan in (first, second):
            plan.close()
    raise RuntimeError("none: all is well")


def automatic_halves():
    for transport in ("auto", *collectives.TRANSPORTS):
        for length in (3, 10**5):  # of the shortest something without halves would be chosen
            with make("auto", length, transport=transport, halves=True) as plan:
                assert plan.has_halves and f"{plan.name} over {plan.transport}" in plan.choice
    raise RuntimeError("none: all is well")


def late(transport):
    """The last rank comes half a second late, the others look up before."""
    with make("alltoall", transport=transport) as plan:
        plan.buffer[:] = comm.rank
        if last:
            time.sleep(0.5)
            plan.run()
        else:
            plan.start()
            try:
                plan.wait(timeout=0.05)
            finally:
                plan.wait(timeout=60)
                assert (plan.buffer == sum(range(comm.size))).all()
        if last:
            raise TimeoutError("none: this rank was the late one")


def late_by_messages():
    late("mpi")


def late_in_memory():
    late("shm")


def called_out_of_order():
    first, second = make("ring", debug=True), make("tree", 7, debug=True)
    plans = (second, first) if last else (first, second)
    for plan in plans:
        plan.run()


def started_and_run():
    """The same plans in the same order, and yet they would wait for each other for ever."""
    first, second = make("ring", debug=True), make("tree", 7, debug=True)
    if last:
        first.start()
        second.run()
    else:
        first.run()


def another_communicator():
    """What is compared belongs to its communicator, whatever its handle is."""
    for color in (comm.rank % 2, comm.rank // 2):
        part = comm.Split(color)
        with collectives.make_plan("ring", part, 5, "int32", debug=True) as plan:
            plan.run()
        part.Free()
    raise RuntimeError("none: all is well")


def not_a_name():
    make(None if last else "ring")


def alike_out_of_order():
    first, second = make(debug=True), make(debug=True)
    (second if last else first).run()


def called_late():
    """The others give up; the late one is told, too, or ends by its own time limit."""
    plan = make(debug=True)
    calls.SECONDS_TO_JOIN = 0.3
    if last:
        time.sleep(0.6)
    try:
        plan.run()
    finally:
        calls.SECONDS_TO_JOIN = 60.0


def not_called_at_all():
    plan = make(debug=True)
    calls.SECONDS_TO_JOIN = 0.3
    if last:
        time.sleep(1.5)
        raise TimeoutError("none: this rank called nothing")
    plan.run()


CASES = [
    other_algorithm, other_length, other_dtype, other_transport, unknown_on_one_rank,
    too_many_degrees, strange_dtype, negative_length, transport_of_a_vendor, not_contiguous,
    buffer_assigned, negative_timeout, narrow_length, waited_in_another_order, complete_already,
    read_only, other_shape, own_buffer_in_shared_memory, run_after_close, started_twice,
    closed_while_running, wait_without_start, late_by_messages, late_in_memory,
    called_out_of_order, started_and_run, alike_out_of_order, closed_instead_of_run,
    another_communicator, no_halves, halves_of_a_vendor, second_half_first, first_half_twice,
    run_between_the_halves, start_between_the_halves, half_after_close, half_and_run,
    halves_on_one_rank, halves_while_another_is_started, automatic_halves,
    not_a_name, not_called_at_all,
]  # fmt: skip


def misuse() -> None:
    for case in CASES:
        try:
            case()
        except (AttributeError, ValueError, RuntimeError, TimeoutError) as error:
            found = f"{case.__name__}: {type(error).__name__}: {error}"
        else:
            found = f"{case.__name__}: nothing was noticed"
        for one in comm.allgather(found) if case is not CASES[-1] else [found]:
            if comm.rank == 0:
                print(one)


def memory() -> None:
    """Nothing grows over 10,000 calls: the peak after them is the peak after 500."""
    for transport in collectives.TRANSPORTS:
        for name in collectives.ALGORITHMS:
            with make(name, 1000, transport=transport) as plan:
                for calls in (500, 9500):
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    for _ in range(calls):
                        plan.run()
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown <= 256, f"{name} over {transport} grew by {grown} KiB"
    if comm.rank == 0:
        print("nothing grew")


def aliases() -> None:
    """Plans come and go while the program still has their buffers in a variable of its own."""
    for _ in range(200):
        with make("ring", 100_000, transport="shm") as plan:
            buffer = plan.buffer
            buffer[:] = 1
            plan.run()
        assert buffer[0] == comm.size
        assert len(shm._KEPT) <= 2, f"{len(shm._KEPT)} windows are kept"
    del buffer
    make("ring", 10, transport="shm").close()
    if comm.rank == 0:
        print("nothing is kept" if not shm._KEPT else "windows are kept")


{"misuse": misuse, "memory": memory, "aliases": aliases, "late": called_late}[sys.argv[1]]()
