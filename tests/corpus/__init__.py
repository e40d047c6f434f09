"""Small exports as companies really have them, each with the verdict that `backfill run` must give on it.

One entry of a table says how the file is made, the configuration, and what must come of it. The tables are one
module per topic; `python -m tests.corpus FOLDER` writes the files, tests/test_run_corpus.py runs the command on them.
"""
