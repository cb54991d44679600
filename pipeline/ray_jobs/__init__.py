"""Run pipelines and trainings as Ray jobs: submit, attach, follow, stop."""
