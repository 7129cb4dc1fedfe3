"""Who moves the bytes of a schedule.

base      what a plan asks of a transport
mpi       persistent point-to-point requests, between any hosts
shm       memory that the ranks of a node share, allocated by MPI
memory    the steps over such memory
"""
