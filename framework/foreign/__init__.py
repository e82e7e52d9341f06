"""Other people's LightningModules: trained as they are, with plugins."""
