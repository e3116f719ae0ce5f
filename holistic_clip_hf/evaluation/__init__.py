# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Model and dataset in, records out: pure metrics, the encoders around them, and the records themselves."""
