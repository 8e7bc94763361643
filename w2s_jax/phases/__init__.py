"""How the phases of a run are run: one after another, or several as one program."""

from w2s_jax.phases.context import Context as Context
from w2s_jax.phases.grouping import Group as Group
from w2s_jax.phases.grouping import claimed_group as claimed_group
from w2s_jax.phases.population_training import train_together as train_together
from w2s_jax.phases.running import run_phase as run_phase
