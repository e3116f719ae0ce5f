# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""For `evaluate.load(path of a folder here)`, offline as well."""
