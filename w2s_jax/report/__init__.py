"""What a run found, for a person: a table in the terminal, and a page with figures.

`print_result` shows one result.json in the terminal. `write_report` reads the folders of one or
several finished runs and writes a self-contained page, figures and tables. Importing this
package is cheap: plotting and templating libraries are imported when they are used.
"""

from w2s_jax.report.html import write_report
from w2s_jax.report.terminal import print_result

__all__ = ["print_result", "write_report"]
