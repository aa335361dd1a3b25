"""What the experiments share: methods, recipes, how turns are timed, results, tables, and the command line."""
