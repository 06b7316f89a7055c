"""Save and load: models, weights and the objects that they are made of. Exported as `nn.saving`."""
