"""Everything that knows a run: profiles, the run context, bands, the notebook runner and the report page."""

from perceiver_lib.experiments.profiles import check_profile, pick
from perceiver_lib.experiments.run import Run, RunIncomplete, start_run

__all__ = ['Run', 'RunIncomplete', 'check_profile', 'pick', 'start_run']
