"""Starting jobs, and knowing how this process was started.

    __main__   python -m launch local | doctor | system-mpi
    local      ranks on this machine            doctor      what is here, what is missing, the cure
    mpi        which MPI: launcher and library  system_mpi  use an MPI that is not from a wheel
    world      which rank and world size the launcher meant, before MPI is imported
    python     the oldest Python that will do

Nothing but the standard library is needed here, so that it can say what is missing.
"""

from launch.python import require_python

require_python()
