"""Measure bundles and references. Every number the README shows comes from a row in
`benchmarks/results/`.
"""

import sys

from runtime.extras import explain_missing_packages

if sys.argv[0] == "-m":  # what Python puts there while it looks for the module of `python -m`
    explain_missing_packages()
