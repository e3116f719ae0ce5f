# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Records and checkpoint in, card out: what the Hub shows about a model."""
