"""Starting jobs, and knowing how this process was started.

world    which rank and world size the launcher meant, before MPI is imported
"""
