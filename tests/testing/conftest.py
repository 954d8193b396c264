"""Makes ``wrong_losses.py`` importable, like a user's module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
