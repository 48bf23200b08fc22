"""What `python -m benchmarks.device` is made of.

`contenders` says what is measured, `plan` which steps that takes and in which order, `kept` what an
earlier run has left, `running` runs a step in a process of its own (`worker`), and `page` and
`plot` make the report. The steps: `facts`, `speed`, `rates`, `plumbing`, `folded`.
"""
