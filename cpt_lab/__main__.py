"""`python -m cpt_lab`."""

from cpt_lab.app import run

run()
