"""The policies, one file each. Importable as `modelium.policies`."""

if __name__ == "policies":  # this folder is the package modelium.policies
    raise ImportError("import modelium.policies, not policies")
