"""Compose one experiment, check it, run it.  python train.py method=dpo model=embedded training.max_steps=20

The same as the installed command `alignment-lab`: see alignment_lab/entrypoints/command.py.
"""

from alignment_lab.entrypoints.command import main

if __name__ == "__main__":
    main()
