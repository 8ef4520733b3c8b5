"""python -m spectral_core: the same as the command spectral-core."""

from spectral_core.cli import main

main()
