"""From demonstrations to a published policy version: record, tune, watch, gate, publish."""
