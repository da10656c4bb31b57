"""From a spec to `torch.nn` modules: resolve → check → derive → emit."""
