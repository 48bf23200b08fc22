"""Who gives the files that the authors of Lotus measured with."""

MARIGOLD = (
    "the files that Marigold made, at "
    "https://share.phys.ethz.ch/~pf/bingkedata/marigold/evaluation_dataset/"
)
DSINE = (
    "dsine_eval.zip of https://github.com/baegwangbin/DSINE (a link in its README, section "
    "'Getting started')"
)
