"""What `preprocess.engines.spark` is made of.

session   the Spark that does the work: found, or started
files     lines with their numbers, tables on disk
columns   what plain lines mean, by Spark's own expressions
oracle    what executors do in Python, with the standard library only: odd lines
join      the second file of a spec that joins two, as a table
frame     a DataFrame as the lines of text that it stands for
"""
