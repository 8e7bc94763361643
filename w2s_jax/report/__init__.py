"""Reports on finished runs: a table in the terminal, and a page with figures.

`print_result` prints one result. `write_report` writes a self-contained page, figures and tables on
one or more runs. `answers_table` returns answers of generation tasks for a notebook. Plotting and
templating libraries are imported when first used.
"""

from w2s_jax.report.answers import answers_table
from w2s_jax.report.html import write_report
from w2s_jax.report.terminal import print_result

__all__ = ["answers_table", "print_result", "write_report"]
