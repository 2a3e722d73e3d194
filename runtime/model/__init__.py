"""Neural policies as plain torch modules: one file per family, weights kept apart from code."""
