"""The environments that ship with Regimen: one folder each, which exports its class as `ENVIRONMENT`."""
