# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The web page: find images by perspective, and see why. `holistic-clip demo CHECKPOINT IMAGES`."""
