"""The product shown in one terminal: an emulated cloud, real instances, a real gateway."""
