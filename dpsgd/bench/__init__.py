"""How fast is a private step here: python -m dpsgd.bench

workloads, data    models, batches, rows        engines, peers    the steps
measure            turns and medians            steps             the rows of the table
parts, floor       one step in parts            show              the tables
job                the main job under mpirun    memory            peak memory
"""
