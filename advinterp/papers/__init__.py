"""The four papers as data: published tables, experiments, claims and figures."""
