"""What plots.py makes of the records of runs; needs neither torch nor an experiment."""
