"""`python -m solo_mim` is the `solo-mim` command."""

import sys

from solo_mim.commands import main

sys.exit(main())
