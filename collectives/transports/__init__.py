"""Who moves the bytes of a schedule. A transport is one file with one class.

`mpi`: persistent point-to-point requests, between any hosts.
"""
