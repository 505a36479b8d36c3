"""The four papers as data: published tables, experiments, claims and figures."""

from .._homes import handed_on

__getattr__ = handed_on(__name__, **{"papers.common": "verdict"})
