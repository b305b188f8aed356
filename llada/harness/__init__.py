"""lm-evaluation-harness: the papers' settings, tasks on local files, and running a suite of them."""
