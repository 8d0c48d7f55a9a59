"""The bus over which the monitors of a fleet exchange their readings. Workers do not import its client."""
