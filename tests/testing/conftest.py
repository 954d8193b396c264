"""Makes the losses of ``wrong_losses.py`` importable, as a user's module is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
