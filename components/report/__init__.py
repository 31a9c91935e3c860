"""The run report: pages that are made of artifacts alone. `pipelines.report` opens a run's folder for it."""
