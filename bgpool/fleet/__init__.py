"""The bus over which the monitors of a fleet tell each other what they read. Workers import none of its client."""
