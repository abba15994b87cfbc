"""The policies, one file or folder each. Importable as `modelium.policies`."""

if __name__ == "policies":  # this folder is the package modelium.policies
    raise ImportError("import modelium.policies, not policies")

POLICIES: dict[str, str] = {
    "static": "modelium.policies.static:Static",
    "random": "modelium.policies.random_evict:RandomEvict",
    "lru": "modelium.policies.lru:Lru",
    "lfu": "modelium.policies.lfu:Lfu",
    "lfuda": "modelium.policies.lfuda:Lfuda",
    "idle_ttl": "modelium.policies.idle_ttl:IdleTtl",
    "gdsf": "modelium.policies.gdsf:Gdsf",
    "landlord": "modelium.policies.landlord:Landlord",
    "ffd": "modelium.policies.ffd:Ffd",
    "bfd": "modelium.policies.bfd:Bfd",
    "ilp": "modelium.policies.ilp.policy:Ilp",
    "belady_cost": "modelium.policies.belady_cost:BeladyCost",
}
"""Where each built-in policy is; imported when asked for, since some import much."""

DEFAULT_POLICY = "ilp"
"""What decides where nobody says otherwise; why it is this one: docs/ilp.md."""
